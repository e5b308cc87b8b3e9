<?php
// Publishes commands: php publish.php COMMAND.json …   (apt or composer: php-amqplib)
// Ends with 0 only when the broker has confirmed every one of them. AMQP_URI says where it is.
require is_file(__DIR__ . '/vendor/autoload.php') ? __DIR__ . '/vendor/autoload.php' : 'PhpAmqpLib/autoload.php';

use PhpAmqpLib\Connection\AMQPSSLConnection;
use PhpAmqpLib\Connection\AMQPStreamConnection;
use PhpAmqpLib\Message\AMQPMessage;

$at = parse_url(getenv('AMQP_URI') ?: 'amqp://guest:guest@127.0.0.1:5672/%2f');
[$user, $password, $vhost] = array_map('urldecode', [$at['user'], $at['pass'], substr($at['path'], 1)]);
$tls = ['verify_peer' => true, 'verify_peer_name' => true]; // by a CA that this machine trusts, for that host
$connection = $at['scheme'] === 'amqps'
    ? new AMQPSSLConnection($at['host'], $at['port'] ?? 5671, $user, $password, $vhost, $tls)
    : new AMQPStreamConnection($at['host'], $at['port'] ?? 5672, $user, $password, $vhost);
$channel = $connection->channel();
$channel->confirm_select();

// What no queue takes comes back, and does so before its confirm.
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
        'message_id' => $file, // tells what came back
        'correlation_id' => basename($file), // comes back with the event: an order number, say
    ]);
    // Mandatory: it comes back instead of vanishing.
    $channel->basic_publish($command, 'redemption.commands', 'redemption.use', true);
    // Throws where nothing is heard in time: then nobody knows, and the same command may be published again.
    $channel->wait_for_pending_acks_returns(30);
    // A command that was not taken may always be published again, as it is.
    echo isset($refused[$file]) ? "NOT taken $file {$refused[$file]}\n" : "confirmed $file\n";
}
$connection->close();
exit($refused ? 1 : 0);
