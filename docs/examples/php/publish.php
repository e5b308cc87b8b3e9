<?php
// Publishes commands: php publish.php COMMAND.json …   (apt or composer: php-amqplib)
// Exits with 0 only if the broker has confirmed every command. AMQP_URI is the address of the broker.
require is_file(__DIR__ . '/vendor/autoload.php') ? __DIR__ . '/vendor/autoload.php' : 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPSSLConnection;
use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;

$at = parse_url(getenv('AMQP_URI') ?: 'amqp://guest:guest@127.0.0.1:5672/%2f');
[$user, $password, $vhost] = array_map('urldecode', [$at['user'], $at['pass'], substr($at['path'], 1)]);
$tls = ['verify_peer' => true, 'verify_peer_name' => true]; // a trusted CA, and the right host
$connection = $at['scheme'] === 'amqps'
    ? new AMQPSSLConnection($at['host'], $at['port'] ?? 5671, $user, $password, $vhost, $tls)
    : new AMQPStreamConnection($at['host'], $at['port'] ?? 5672, $user, $password, $vhost);
$channel = $connection->channel();
$channel->confirm_select();

// The broker returns a message that no queue accepts, before its confirm.
$refused = [];
$channel->set_return_listener(function ($code, $text, $exchange, $key, AMQPMessage $message) use (&$refused) {
    $refused[$message->get('message_id')] = $text;
});
$channel->set_nack_handler(function (AMQPMessage $message) use (&$refused) {
    $refused[$message->get('message_id')] = 'refused';
});

foreach (array_slice($argv, 1) as $file) {
    $command = new AMQPMessage(file_get_contents($file), [
        'content_type' => 'application/json',
        'delivery_mode' => AMQPMessage::DELIVERY_MODE_PERSISTENT,
        'message_id' => $file, // identifies a returned message
        'correlation_id' => basename($file), // becomes the correlation id of the event, e.g. an order number
    ]);
    // Mandatory: the broker returns it if no queue accepts it.
    $channel->basic_publish($command, 'redemption.commands', 'redemption.use', true);
    // Throws on a timeout: the fate of the command is unknown, and it may be published again.
    $channel->wait_for_pending_acks_returns(30);
    // It is always safe to publish the same command again, unchanged.
    echo isset($refused[$file]) ? "NOT taken $file {$refused[$file]}\n" : "confirmed $file\n";
}
$connection->close();
exit($refused ? 1 : 0);
