import com.rabbitmq.client.ConnectionFactory;
import java.nio.file.*;
import java.util.Map;
import java.util.UUID;

/**
 * Receives result events: java -cp amqp-client.jar:slf4j-api.jar Subscribe.java
 * (apt install librabbitmq-client-java, or com.rabbitmq:amqp-client from Maven)
 * Each event is stored once, under its id, and only then acknowledged. AMQP_URI says where the broker is; the events
 * are kept in the folder results. A table with the id as primary key does the same: insert, and change the rest with it.
 */
public class Subscribe {
    static final String QUEUE = "orders.java";
    static final Path FOLDER = Path.of("results");

    /** Whether the event is new. Written whole first: a file under an id is the mark and the event in one. */
    static boolean store(UUID id, byte[] body) throws Exception {
        var draft = FOLDER.resolve(".draft-" + ProcessHandle.current().pid());
        Files.write(draft, body, StandardOpenOption.CREATE, StandardOpenOption.WRITE,
            StandardOpenOption.TRUNCATE_EXISTING, StandardOpenOption.SYNC);
        try {
            Files.createLink(FOLDER.resolve(id + ".json"), draft);
            return true;
        } catch (FileAlreadyExistsException repeat) {
            return false;
        } finally {
            Files.delete(draft);
        }
    }

    public static void main(String[] arguments) throws Exception {
        Files.createDirectories(FOLDER);
        var factory = new ConnectionFactory();
        factory.setUri(System.getenv().getOrDefault("AMQP_URI", "amqp://guest:guest@127.0.0.1:5672/%2f"));
        var channel = factory.newConnection().createChannel();
        // A queue that outlives this program, so that nothing is missed while it is away.
        channel.queueDeclare(QUEUE, true, false, false, Map.of("x-queue-type", "quorum"));
        channel.queueBind(QUEUE, "redemption.results", "redemption.#");
        channel.basicQos(50);
        System.out.println("waiting");
        channel.basicConsume(QUEUE, false, (tag, message) -> {
            try {
                var properties = message.getProperties();
                var id = UUID.fromString(properties.getMessageId()); // the event's own id
                var word = store(id, message.getBody()) ? "new" : "repeat";
                System.out.println(word + " " + properties.getType() + " " + id + " " + properties.getCorrelationId());
                // Last: an event that is not acknowledged comes again, and is then a repeat.
                channel.basicAck(message.getEnvelope().getDeliveryTag(), false);
            } catch (Exception trouble) {
                trouble.printStackTrace();
                System.exit(1); // not acknowledged: it comes again when this program is started again
            }
        }, tag -> System.exit(1)); // the queue was deleted
    }
}
