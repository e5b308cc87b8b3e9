import com.fasterxml.jackson.databind.*;
import com.rabbitmq.client.*;
import java.nio.file.*;
import java.util.*;
import javax.net.ssl.*;

// Receives result events: java -cp amqp-client.jar:slf4j-api.jar:jackson-databind.jar:jackson-core.jar:jackson-annotations.jar
// Subscribe.java   (apt: librabbitmq-client-java libjackson2-databind-java)
// Each event is stored once, under its id, and only then acknowledged. AMQP_URI is the address of the broker; the events
// are kept in the folder results. A table with the id as primary key works too.
public class Subscribe {
    static final String QUEUE = "orders.java";
    static final Path FOLDER = Path.of("results");

    /** Whether the event is new. The file is complete before it gets its name, so its name marks a stored event. */
    static boolean store(UUID id, byte[] body) throws Exception {
        var draft = FOLDER.resolve(".draft-" + ProcessHandle.current().pid());
        Files.write(draft, body, StandardOpenOption.CREATE, StandardOpenOption.WRITE,
            StandardOpenOption.TRUNCATE_EXISTING, StandardOpenOption.SYNC);
        var isNew = true;
        try {
            Files.createLink(FOLDER.resolve(id + ".json"), draft);
        } catch (FileAlreadyExistsException repeat) {
            isNew = false;
        }
        Files.delete(draft);
        try (var folder = java.nio.channels.FileChannel.open(FOLDER)) { folder.force(true); } // survives a power failure
        return isNew;
    }

    /** How many uses are left, and until when. Any member may be missing: see docs/coupon.md. */
    static String left(byte[] body) throws Exception {
        var coupon = new ObjectMapper().readTree(body).path("data").path("coupon");
        var bundle = coupon.path("user_product_coupon_bundle_info");
        var counted = bundle.isObject() ? bundle : coupon.path("sequential_usage_detail");
        var usable = coupon.path("coupon_state").asText().equals("EFFECTIVE") ? 1 : 0;
        var uses = counted.isObject() ? counted.path("total_count").asLong() - counted.path("used_count").asLong() : usable;
        return "left " + uses + " until " + coupon.path("valid_end_time").asText("-");
    }

    public static void main(String[] arguments) throws Exception {
        Files.createDirectories(FOLDER);
        var factory = new ConnectionFactory();
        var uri = System.getenv().getOrDefault("AMQP_URI", "amqp://guest:guest@127.0.0.1:5672/%2f");
        factory.setUri(uri);
        if (uri.startsWith("amqps:")) { // by default the client trusts any certificate, for any host
            factory.useSslProtocol(SSLContext.getDefault());
            var strict = SSLContext.getDefault().getDefaultSSLParameters();
            strict.setEndpointIdentificationAlgorithm("HTTPS");
            factory.setSocketConfigurator(socket -> ((SSLSocket) socket).setSSLParameters(strict));
        }
        var channel = factory.newConnection(() -> List.of(new Address(factory.getHost(), factory.getPort()))).createChannel();
        // Durable: it keeps events while this program is down. RabbitMQ 4 drops after 20 returns without the limit.
        channel.queueDeclare(QUEUE, true, false, false, Map.of("x-queue-type", "quorum", "x-delivery-limit", 1_000_000));
        channel.queueBind(QUEUE, "redemption.results", "redemption.#");
        channel.basicQos(50);
        System.out.println("waiting");
        channel.basicConsume(QUEUE, false, (tag, message) -> {
            try {
                var properties = message.getProperties();
                var id = UUID.fromString(properties.getMessageId()); // the id of the event
                var word = store(id, message.getBody()) ? "new" : "repeat";
                var order = properties.getType() + " " + id + " " + properties.getCorrelationId();
                System.out.println(word + " " + order + " " + left(message.getBody()));
                channel.basicAck(message.getEnvelope().getDeliveryTag(), false); // last: without an ack it is delivered again
            } catch (Exception trouble) {
                trouble.printStackTrace();
                System.exit(1); // not acknowledged: the broker delivers it again after a restart
            }
        }, tag -> System.exit(1)); // the queue was deleted
    }
}
