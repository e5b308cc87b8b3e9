import com.rabbitmq.client.AMQP;
import com.rabbitmq.client.Channel;
import com.rabbitmq.client.Connection;
import com.rabbitmq.client.ConnectionFactory;
import com.rabbitmq.client.DefaultConsumer;
import com.rabbitmq.client.Envelope;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyFactory;
import java.security.PrivateKey;
import java.security.PublicKey;
import java.security.Signature;
import java.security.spec.PKCS8EncodedKeySpec;
import java.security.spec.X509EncodedKeySpec;
import java.time.Instant;
import java.util.Base64;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ConcurrentSkipListMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.regex.Matcher;
import java.util.regex.Pattern;

/**
 * The job with the RabbitMQ client, java.net.http and java.security, and nothing else: signatures by the provider that
 * Java brings. It brings no JSON, so the few fields that are needed are cut out of flat texts; a real service would pay
 * for a parser as well.
 */
public final class Peer {
    private static final Map<String, String> ENV = System.getenv();
    private static final Pattern FIELD = Pattern.compile("\"(openid|coupon_code|brand_id)\":\"([^\"]*)\",?");
    private static final Pattern STATE = Pattern.compile("\"coupon_state\":\"([^\"]*)\"");

    private final PrivateKey privateKey;
    private final PublicKey publicKey;
    // As many threads as processors: what they do is signing, verifying and writing, and nothing waits on them.
    private final ExecutorService pool = Executors.newFixedThreadPool(Runtime.getRuntime().availableProcessors());
    private final HttpClient http =
        HttpClient.newBuilder().version(HttpClient.Version.HTTP_1_1).executor(pool).build();
    private final Channel results;
    private final Channel commands;
    private final ConcurrentSkipListMap<Long, CompletableFuture<Void>> unconfirmed = new ConcurrentSkipListMap<>();
    private final Map<String, Boolean> returned = new ConcurrentHashMap<>();

    public static void main(String[] arguments) throws Exception {
        new Peer().consume();
    }

    private Peer() throws Exception {
        KeyFactory rsa = KeyFactory.getInstance("RSA");
        privateKey = rsa.generatePrivate(new PKCS8EncodedKeySpec(pem("PEER_KEY_FILE")));
        publicKey = rsa.generatePublic(new X509EncodedKeySpec(pem("PEER_PUBLIC_KEY_FILE")));
        ConnectionFactory factory = new ConnectionFactory();
        factory.setUri(ENV.get("PEER_URI"));
        Connection connection = factory.newConnection();
        results = connection.createChannel();
        commands = connection.createChannel();
        results.confirmSelect();
        results.addReturnListener((code, text, exchange, key, properties, body) ->
            returned.put(properties.getMessageId(), true));
        results.addConfirmListener(
            (tag, multiple) -> settle(tag, multiple, null),
            (tag, multiple) -> settle(tag, multiple, new IllegalStateException("nack")));
    }

    private static byte[] pem(String variable) throws Exception {
        String text = Files.readString(Path.of(ENV.get(variable))).replaceAll("-----[A-Z ]+-----|\\s", "");
        return Base64.getDecoder().decode(text);
    }

    private void settle(long tag, boolean multiple, Exception why) {
        Map<Long, CompletableFuture<Void>> settled = multiple ? unconfirmed.headMap(tag, true) : null;
        if (settled == null) {
            finish(unconfirmed.remove(tag), why);
        } else {
            settled.values().forEach(each -> finish(each, why));
            settled.clear();
        }
    }

    private static void finish(CompletableFuture<Void> each, Exception why) {
        if (each == null) {
            return;
        }
        if (why == null) {
            each.complete(null);
        } else {
            each.completeExceptionally(why);
        }
    }

    private void consume() throws Exception {
        commands.basicQos(Integer.parseInt(ENV.get("PEER_IN_FLIGHT")));
        commands.basicConsume(ENV.get("PEER_COMMANDS"), false, new DefaultConsumer(commands) {
            @Override
            public void handleDelivery(String tag, Envelope envelope, AMQP.BasicProperties properties, byte[] body) {
                // Signing is the dear part: it does not run on the connection's thread.
                CompletableFuture.supplyAsync(() -> redeem(new String(body, StandardCharsets.UTF_8)), pool)
                    .thenCompose(done -> done)
                    .whenComplete((done, error) -> settle(envelope.getDeliveryTag(), error));
            }
        });
    }

    private void settle(long tag, Throwable error) {
        try {
            synchronized (commands) {
                if (error == null) {
                    commands.basicAck(tag, false);
                } else {
                    System.err.println(error);
                    commands.basicNack(tag, false, true);
                }
            }
        } catch (Exception failure) {
            System.err.println(failure);
        }
    }

    private CompletableFuture<Void> redeem(String command) {
        String openid = "";
        String code = "";
        String brand = "";
        Matcher field = FIELD.matcher(command);
        while (field.find()) {
            switch (field.group(1)) {
                case "openid" -> openid = field.group(2);
                case "coupon_code" -> code = field.group(2);
                default -> brand = field.group(2);
            }
        }
        String body = command.replaceFirst("\"openid\":\"[^\"]*\",?", "").replaceFirst("\"coupon_code\":\"[^\"]*\",?", "");
        String target = "/v3/marketing/partner/product-coupon/users/" + openid + "/coupons/" + code + "/use";
        HttpRequest request = HttpRequest.newBuilder(URI.create(ENV.get("PEER_BASE_URL") + target))
            .header("Accept", "application/json")
            .header("Content-Type", "application/json")
            .header("User-Agent", "peer")
            .header("Wechatpay-Serial", ENV.get("PEER_PUBLIC_KEY_ID"))
            .header("Authorization", authorization(target, body))
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
        String coupon = code;
        String brandId = brand;
        return http.sendAsync(request, HttpResponse.BodyHandlers.ofString())
            .thenCompose(reply -> tell(command, coupon, brandId, reply));
    }

    private String authorization(String target, String body) {
        long timestamp = Instant.now().getEpochSecond();
        String nonce = UUID.randomUUID().toString().replace("-", "");
        String text = "POST\n" + target + "\n" + timestamp + "\n" + nonce + "\n" + body + "\n";
        try {
            Signature signer = Signature.getInstance("SHA256withRSA");
            signer.initSign(privateKey);
            signer.update(text.getBytes(StandardCharsets.UTF_8));
            return "WECHATPAY2-SHA256-RSA2048 mchid=\"" + ENV.get("PEER_MCHID") + "\",nonce_str=\"" + nonce
                + "\",signature=\"" + Base64.getEncoder().encodeToString(signer.sign())
                + "\",timestamp=\"" + timestamp + "\",serial_no=\"" + ENV.get("PEER_SERIAL") + "\"";
        } catch (java.security.GeneralSecurityException error) {
            throw new IllegalStateException(error);
        }
    }

    private boolean verified(HttpResponse<String> reply) {
        String timestamp = reply.headers().firstValue("wechatpay-timestamp").orElse("0");
        String serial = reply.headers().firstValue("wechatpay-serial").orElse("");
        String nonce = reply.headers().firstValue("wechatpay-nonce").orElse("");
        String signature = reply.headers().firstValue("wechatpay-signature").orElse("");
        if (!serial.equals(ENV.get("PEER_PUBLIC_KEY_ID"))
            || Math.abs(Instant.now().getEpochSecond() - Long.parseLong(timestamp)) >= 300) {
            return false;
        }
        try {
            Signature verifier = Signature.getInstance("SHA256withRSA");
            verifier.initVerify(publicKey);
            verifier.update((timestamp + "\n" + nonce + "\n" + reply.body() + "\n").getBytes(StandardCharsets.UTF_8));
            return verifier.verify(Base64.getDecoder().decode(signature));
        } catch (java.security.GeneralSecurityException | IllegalArgumentException error) {
            return false;
        }
    }

    private CompletableFuture<Void> tell(String command, String code, String brand, HttpResponse<String> reply) {
        if (reply.statusCode() != 200 || !verified(reply)) {
            throw new IllegalStateException("status " + reply.statusCode());
        }
        Matcher state = STATE.matcher(reply.body());
        String id = UUID.randomUUID().toString();
        String event = "{\"specversion\":\"1.0\",\"id\":\"" + id + "\",\"source\":\"/peer\","
            + "\"type\":\"redemption.redeemed.v1\",\"subject\":\"" + code + "\",\"time\":\"" + Instant.now()
            + "\",\"datacontenttype\":\"application/json\",\"data\":" + command.substring(0, command.length() - 1)
            + ",\"outcome\":\"redeemed\",\"coupon_state\":\"" + (state.find() ? state.group(1) : "")
            + "\",\"coupon\":" + reply.body() + "}}";
        AMQP.BasicProperties properties = new AMQP.BasicProperties.Builder()
            .deliveryMode(2).contentType("application/cloudevents+json").messageId(id).build();
        CompletableFuture<Void> confirmed = new CompletableFuture<>();
        try {
            synchronized (results) {
                unconfirmed.put(results.getNextPublishSeqNo(), confirmed);
                results.basicPublish(ENV.get("PEER_RESULTS"), "redemption.redeemed." + brand, true, properties,
                    event.getBytes(StandardCharsets.UTF_8));
            }
        } catch (java.io.IOException error) {
            return CompletableFuture.failedFuture(error);
        }
        return confirmed.thenAccept(done -> {
            if (returned.remove(id) != null) {
                throw new IllegalStateException("the event was returned");
            }
        });
    }
}
