<?php
// Receives result events: php subscribe.php   (apt or composer: php-amqplib; apt: php-sqlite3)
// Each event is stored once, under its id, and only then acknowledged. AMQP_URI is the address of the broker; the
// events are kept in the SQLite file results.sqlite.
require is_file(__DIR__ . '/vendor/autoload.php') ? __DIR__ . '/vendor/autoload.php' : 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPSSLConnection;
use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;
use PhpAmqpLib\Wire\AMQPTable;

const QUEUE = 'orders.php';

$store = new PDO('sqlite:results.sqlite');
$store->setAttribute(PDO::ATTR_ERRMODE, PDO::ERRMODE_EXCEPTION);
$store->exec('CREATE TABLE IF NOT EXISTS results (id TEXT PRIMARY KEY, type TEXT NOT NULL, event TEXT NOT NULL)');
$insert = $store->prepare('INSERT OR IGNORE INTO results VALUES (?, ?, ?)');

$at = parse_url(getenv('AMQP_URI') ?: 'amqp://guest:guest@127.0.0.1:5672/%2f');
[$user, $password, $vhost] = array_map('urldecode', [$at['user'], $at['pass'], substr($at['path'], 1)]);
$tls = ['verify_peer' => true, 'verify_peer_name' => true]; // a trusted CA, and the right host
$connection = $at['scheme'] === 'amqps'
    ? new AMQPSSLConnection($at['host'], $at['port'] ?? 5671, $user, $password, $vhost, $tls)
    : new AMQPStreamConnection($at['host'], $at['port'] ?? 5672, $user, $password, $vhost);
$channel = $connection->channel();

// Durable: it keeps events while this program is down. RabbitMQ 4 drops after 20 returns without the limit.
$kind = new AMQPTable(['x-queue-type' => 'quorum', 'x-delivery-limit' => 1_000_000]);
$channel->queue_declare(QUEUE, false, true, false, false, false, $kind);
$channel->queue_bind(QUEUE, 'redemption.results', 'redemption.#');
$channel->basic_qos(0, 50, false);

const USAGES = [
    'SINGLE' => 'single_usage_detail',
    'PROGRESSIVE_BUNDLE' => 'progressive_bundle_usage_detail',
    'SEQUENTIAL' => 'sequential_usage_detail',
];

// A member; null if it is missing or of another type.
function pick(mixed $value, string $name, string $kind): mixed
{
    $found = is_array($value) ? $value[$name] ?? null : null;
    return get_debug_type($found) === $kind ? $found : null;
}

// Did our order use the coupon? Who did, and when? What did it save, what is left, until when? See docs/coupon.md.
function answers(array $data): string
{
    [$coupon, $number, $redeemed] = [$data['coupon'] ?? [], $data['out_request_no'], $data['outcome'] === 'redeemed'];
    $state = pick($coupon, 'coupon_state', 'string');
    $there = array_keys(array_filter(USAGES, fn ($name) => pick($coupon, $name, 'array') !== null));
    $mode = pick(pick($coupon, 'product_coupon', 'array'), 'usage_mode', 'string');
    $mode ??= count($there) === 1 ? $there[0] : '';
    $usage = pick($coupon, USAGES[$mode] ?? '', 'array');
    $uses = $state === 'USED' ? [$usage] : [];
    if ($mode === 'SEQUENTIAL') {
        $rounds = pick($usage, 'detail_item_list', 'array') ?? [];
        $uses = array_filter($rounds, fn ($round) => pick($round, 'detail_state', 'string') === 'USED');
        $ours = array_filter($uses, fn ($round) => pick($round, 'use_request_no', 'string') === $number);
        $uses = $ours || $redeemed ? $ours : $uses;
    }
    $counts = $mode === 'PROGRESSIVE_BUNDLE' ? pick($coupon, 'user_product_coupon_bundle_info', 'array') : $usage;
    [$total, $used] = [pick($counts, 'total_count', 'int'), pick($counts, 'used_count', 'int')];
    $left = '-'; // unknown, which is not 0
    if (in_array($mode, ['SINGLE', 'SEQUENTIAL']) && in_array($state, ['EXPIRED', 'DELETED', 'DEACTIVATED'])) {
        $left = 0;
    } elseif (isset(USAGES[$mode]) && in_array($state, ['CONFIRMING', 'PENDING', 'EFFECTIVE', 'USED'])) {
        $rest = $total !== null && $used !== null && $used <= $total ? $total - $used : '-';
        $left = $mode === 'SINGLE' ? (int) ($state !== 'USED') : $rest;
    }
    // The end of a used coupon of a bundle is not that of the next one.
    $ends = $left !== '-' && [$mode, $state] !== ['PROGRESSIVE_BUNDLE', 'USED'];
    $until = $ends ? pick($coupon, 'valid_end_time', 'string') ?? '-' : '-';
    $shown = function (string $name, string $kind) use ($uses): string {
        $found = array_filter(array_map(fn ($use) => pick($use, $name, $kind), $uses), fn ($value) => $value !== null);
        return $found ? implode(',', $found) : '-';
    };
    $word = ['redeemed' => 'yes', 'unresolved' => 'unknown'][$data['outcome']] ?? 'no';
    [$by, $when] = [$redeemed ? $number : $shown('use_request_no', 'string'), $shown('use_time', 'string')];
    return "used $word by $by when $when saved {$shown('saved_amount', 'int')} left $left until $until";
}

$take = function (AMQPMessage $message) use ($store, $insert) {
    // As arrays: an object of PHP takes not every name.
    $event = json_decode($message->getBody(), true, 512, JSON_THROW_ON_ERROR);
    // One transaction stores the id and applies the changes of the event, or does neither.
    $store->beginTransaction();
    $insert->execute([$event['id'], $event['type'], $message->getBody()]);
    $new = $insert->rowCount() === 1;
    // if ($new): apply the other changes of the event here
    $store->commit();
    $order = $message->has('correlation_id') ? $message->get('correlation_id') : '';
    echo $new ? 'new' : 'repeat', " {$event['type']} {$event['id']} $order ", answers($event['data']), "\n";
    // Last: an event without an ack is delivered again, as a repeat.
    $message->ack();
};
$channel->basic_consume(QUEUE, '', false, false, false, false, $take); // acknowledged explicitly
echo "waiting\n";
while ($channel->is_consuming()) {
    $channel->wait();
}
exit(1); // the queue was deleted
