import com.fasterxml.jackson.databind.*;
import com.rabbitmq.client.*;
import java.nio.file.*;
import java.util.*;
import java.util.function.Predicate;
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

    static final Map<String, String> USAGES = Map.of("SINGLE", "single_usage_detail",
        "PROGRESSIVE_BUNDLE", "progressive_bundle_usage_detail", "SEQUENTIAL", "sequential_usage_detail");

    /** What the uses say under a name, of the type that it has; "-" if they say nothing. */
    static String shown(List<JsonNode> uses, String name, Predicate<JsonNode> isOfType) {
        var found = uses.stream().map(use -> use.path(name)).filter(isOfType).map(JsonNode::asText).toList();
        return found.isEmpty() ? "-" : String.join(",", found);
    }

    /** Did our order use the coupon? Who did, and when? What did it save, what is left, until when? See docs/coupon.md. */
    static String answers(JsonNode data) {
        // Any member may be missing or of another type: path() goes on, and each value is asked for its type.
        var coupon = data.path("coupon");
        var number = data.path("out_request_no").asText();
        var redeemed = data.path("outcome").asText().equals("redeemed");
        var state = coupon.path("coupon_state").asText();
        var there = USAGES.keySet().stream().filter(kind -> coupon.path(USAGES.get(kind)).isObject()).toList();
        var named = coupon.path("product_coupon").path("usage_mode");
        var mode = named.isTextual() ? named.asText() : there.size() == 1 ? there.get(0) : "";
        var usage = coupon.path(USAGES.getOrDefault(mode, ""));
        var uses = new ArrayList<JsonNode>();
        if (mode.equals("SEQUENTIAL")) {
            usage.path("detail_item_list").forEach(uses::add);
            uses.removeIf(round -> !round.path("detail_state").asText().equals("USED"));
            Predicate<JsonNode> isOurs = round -> round.path("use_request_no").asText().equals(number);
            if (redeemed || uses.stream().anyMatch(isOurs)) uses.removeIf(isOurs.negate());
        } else if (state.equals("USED")) {
            uses.add(usage);
        }
        var counts = mode.equals("PROGRESSIVE_BUNDLE") ? coupon.path("user_product_coupon_bundle_info") : usage;
        var total = counts.path("total_count");
        var used = counts.path("used_count");
        Predicate<JsonNode> isWhole = value -> value.isIntegralNumber() && value.canConvertToLong();
        var isOver = Set.of("EXPIRED", "DELETED", "DEACTIVATED").contains(state);
        var isOpen = Set.of("CONFIRMING", "PENDING", "EFFECTIVE", "USED").contains(state);
        var isCounted = isWhole.test(total) && isWhole.test(used) && used.asLong() <= total.asLong();
        var left = "-"; // unknown, which is not 0
        if (isOver && Set.of("SINGLE", "SEQUENTIAL").contains(mode)) left = "0";
        else if (isOpen && mode.equals("SINGLE")) left = state.equals("USED") ? "0" : "1";
        else if (isOpen && USAGES.containsKey(mode) && isCounted) left = "" + (total.asLong() - used.asLong());
        // The end of a used coupon of a bundle is not that of the next one.
        var ends = !left.equals("-") && !(mode.equals("PROGRESSIVE_BUNDLE") && state.equals("USED"));
        var end = coupon.path("valid_end_time");
        var until = ends && end.isTextual() ? end.asText() : "-";
        var word = Map.of("redeemed", "yes", "unresolved", "unknown").getOrDefault(data.path("outcome").asText(), "no");
        var by = redeemed ? number : shown(uses, "use_request_no", JsonNode::isTextual);
        var when = shown(uses, "use_time", JsonNode::isTextual);
        var saved = shown(uses, "saved_amount", isWhole);
        return "used " + word + " by " + by + " when " + when + " saved " + saved + " left " + left + " until " + until;
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
                var event = new ObjectMapper().readTree(message.getBody());
                var word = store(id, message.getBody()) ? "new" : "repeat";
                var order = properties.getType() + " " + id + " " + properties.getCorrelationId();
                System.out.println(word + " " + order + " " + answers(event.path("data")));
                channel.basicAck(message.getEnvelope().getDeliveryTag(), false); // last: without an ack it is delivered again
            } catch (Exception trouble) {
                trouble.printStackTrace();
                System.exit(1); // not acknowledged: the broker delivers it again after a restart
            }
        }, tag -> System.exit(1)); // the queue was deleted
    }
}
