import com.rabbitmq.client.AMQP.BasicProperties;
import com.rabbitmq.client.*;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.*;
import java.util.concurrent.ConcurrentHashMap;
import javax.net.ssl.*;

/**
 * Publishes commands: java -cp amqp-client.jar:slf4j-api.jar Publish.java COMMAND.json …
 * (apt install librabbitmq-client-java, or com.rabbitmq:amqp-client from Maven)
 * Exits with 0 only if the broker has confirmed every command. AMQP_URI is the address of the broker.
 */
public class Publish {
    public static void main(String[] files) throws Exception {
        var factory = new ConnectionFactory();
        var uri = System.getenv().getOrDefault("AMQP_URI", "amqp://guest:guest@127.0.0.1:5672/%2f");
        factory.setUri(uri);
        if (uri.startsWith("amqps:")) {
            // By default the client trusts any certificate, for any host.
            factory.useSslProtocol(SSLContext.getDefault());
            var strict = SSLContext.getDefault().getDefaultSSLParameters();
            strict.setEndpointIdentificationAlgorithm("HTTPS");
            factory.setSocketConfigurator(socket -> ((SSLSocket) socket).setSSLParameters(strict));
        }
        var failed = false;
        // Use the host name: older clients resolve it first, and then the certificate must name the address.
        var broker = List.of(new Address(factory.getHost(), factory.getPort()));
        try (var connection = factory.newConnection(() -> broker); var channel = connection.createChannel()) {
            channel.confirmSelect();
            // The broker returns a message that no queue accepts, before its confirm.
            Set<String> returned = ConcurrentHashMap.newKeySet();
            channel.addReturnListener((code, text, exchange, key, properties, body) ->
                returned.add(properties.getMessageId()));
            for (var file : files) {
                var properties = new BasicProperties.Builder()
                    .contentType("application/json")
                    .deliveryMode(2) // kept on disk
                    .messageId(file) // identifies a returned message
                    .correlationId(Path.of(file).getFileName().toString()) // becomes the correlation id of the event
                    .build();
                // Mandatory: the broker returns it if no queue accepts it.
                var command = Files.readAllBytes(Path.of(file));
                channel.basicPublish("redemption.commands", "redemption.use", true, properties, command);
                // Throws on a timeout: the fate of the command is unknown.
                var confirmed = channel.waitForConfirms(30_000);
                var taken = confirmed && !returned.contains(file);
                // It is always safe to publish the same command again, unchanged.
                System.out.println(taken ? "confirmed " + file : "NOT taken " + file);
                failed |= !taken;
            }
        }
        System.exit(failed ? 1 : 0);
    }
}
