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

// How many uses are left, and until when. Any member may be missing: see docs/coupon.md.
$left = function (?object $coupon): string {
    $counted = $coupon->user_product_coupon_bundle_info ?? $coupon->sequential_usage_detail ?? null;
    [$total, $used] = [$counted->total_count ?? null, $counted->used_count ?? null];
    $usable = (int) (($coupon->coupon_state ?? null) === 'EFFECTIVE');
    $uses = $counted === null ? $usable : (is_int($total) && is_int($used) ? $total - $used : '-');
    return "left $uses until " . ($coupon->valid_end_time ?? '-');
};

$take = function (AMQPMessage $message) use ($store, $insert, $left) {
    $event = json_decode($message->getBody(), false, 512, JSON_THROW_ON_ERROR);
    // One transaction stores the id and applies the changes of the event, or does neither.
    $store->beginTransaction();
    $insert->execute([$event->id, $event->type, $message->getBody()]);
    $new = $insert->rowCount() === 1;
    // if ($new): apply the other changes of the event here
    $store->commit();
    $order = $message->has('correlation_id') ? $message->get('correlation_id') : '';
    echo $new ? 'new' : 'repeat', " {$event->type} {$event->id} $order {$left($event->data->coupon)}\n";
    // Last: an event without an ack is delivered again, as a repeat.
    $message->ack();
};
$channel->basic_consume(QUEUE, '', false, false, false, false, $take); // acknowledged explicitly
echo "waiting\n";
while ($channel->is_consuming()) {
    $channel->wait();
}
exit(1); // the queue was deleted
