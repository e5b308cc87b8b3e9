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
 * Ends with 0 only when the broker has confirmed every one of them. AMQP_URI says where it is.
 */
public class Publish {
    public static void main(String[] files) throws Exception {
        var factory = new ConnectionFactory();
        var uri = System.getenv().getOrDefault("AMQP_URI", "amqp://guest:guest@127.0.0.1:5672/%2f");
        factory.setUri(uri);
        if (uri.startsWith("amqps:")) {
            // By itself the client would trust any certificate, for any host.
            factory.useSslProtocol(SSLContext.getDefault());
            var strict = SSLContext.getDefault().getDefaultSSLParameters();
            strict.setEndpointIdentificationAlgorithm("HTTPS");
            factory.setSocketConfigurator(socket -> ((SSLSocket) socket).setSSLParameters(strict));
        }
        var failed = false;
        // By its name, which older clients resolve first: then a certificate would have to name the address.
        var broker = List.of(new Address(factory.getHost(), factory.getPort()));
        try (var connection = factory.newConnection(() -> broker); var channel = connection.createChannel()) {
            channel.confirmSelect();
            // What no queue takes comes back, and does so before its confirm.
            Set<String> returned = ConcurrentHashMap.newKeySet();
            channel.addReturnListener((code, text, exchange, key, properties, body) ->
                returned.add(properties.getMessageId()));
            for (var file : files) {
                var properties = new BasicProperties.Builder()
                    .contentType("application/json")
                    .deliveryMode(2) // kept on disk
                    .messageId(file) // tells what came back
                    .correlationId(Path.of(file).getFileName().toString()) // comes back with the event
                    .build();
                // Mandatory: it comes back instead of vanishing.
                var command = Files.readAllBytes(Path.of(file));
                channel.basicPublish("redemption.commands", "redemption.use", true, properties, command);
                // Throws where nothing is heard in time: then nobody knows.
                var confirmed = channel.waitForConfirms(30_000);
                var taken = confirmed && !returned.contains(file);
                // A command that was not taken may always be published again, as it is.
                System.out.println(taken ? "confirmed " + file : "NOT taken " + file);
                failed |= !taken;
            }
        }
        System.exit(failed ? 1 : 0);
    }
}
