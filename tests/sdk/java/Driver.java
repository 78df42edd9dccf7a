// Drives the Java SDK by commands on stdin; ../drivers/driver.js is its twin. A command names one
// client by `key`; what that client hears goes out on stdout as events. The SDK speaks Protobuf only,
// and gives and takes bytes: data that is JSON is told as `data`, anything else as `b64data`.

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonNull;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.JsonPrimitive;
import com.google.gson.TypeAdapter;
import io.github.centrifugal.centrifuge.*;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.lang.reflect.Method;
import java.nio.ByteBuffer;
import java.nio.charset.StandardCharsets;
import java.util.ArrayDeque;
import java.util.Base64;
import java.util.HashMap;
import java.util.Map;
import java.util.Queue;
import java.util.concurrent.ConcurrentHashMap;

public final class Driver {
    private static final int MIN_DELAY = 20;
    private static final int MAX_DELAY = 200;
    /** Of a call; the SDK's own timeout is shorter than a busy machine needs. */
    private static final int PATIENCE = 20_000;

    private static final Gson GSON = new GsonBuilder().serializeNulls().disableHtmlEscaping().create();
    /** Unlike Gson itself it refuses what is not JSON. */
    private static final TypeAdapter<JsonElement> STRICT = GSON.getAdapter(JsonElement.class);

    private final PrintStream output;
    private final Map<String, Client> clients = new ConcurrentHashMap<>();

    private Driver(PrintStream output) {
        this.output = output;
    }

    public static void main(String[] arguments) throws Exception {
        Driver driver = new Driver(new PrintStream(System.out, false, "UTF-8"));
        driver.emit(new JsonPrimitive("ready"));
        BufferedReader input =
                new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String line = input.readLine(); line != null; line = input.readLine()) {
            driver.handle(GSON.fromJson(line, Command.class));
        }
        System.exit(0);
    }

    private synchronized void emit(JsonElement value) {
        output.print(GSON.toJson(value) + "\n");
        output.flush();
    }

    // -- Commands

    private static final class Command {
        int id;
        String call;
        String key;
        String url;
        String channel;
        String method;
        JsonElement data;
        String b64data;
        /** Those of a client, of a subscription and of a read of history. */
        Settings options;

        byte[] payload() {
            return b64data != null ? Base64.getDecoder().decode(b64data) : bytes(data);
        }
    }

    private static final class Settings {
        String token;
        String[] tokens;
        JsonElement data;
        boolean positioned;
        boolean recoverable;
        boolean join_leave;
        int limit;
        Position since;
        boolean reverse;
    }

    private static final class Position {
        long offset;
        String epoch;
    }

    private void handle(Command command) {
        try {
            carryOut(command, clients.get(command.key));
        } catch (Exception error) {
            answer(command, error, JsonNull.INSTANCE);
        }
    }

    private void carryOut(Command command, Client client) throws Exception {
        switch (command.call) {
            case "open":
                open(command);
                break;
            case "connect":
                client.connect();
                break;
            case "disconnect":
                client.disconnect();
                break;
            case "close":
                // It waits for the client's threads, in which its last events are told.
                clients.remove(command.key).close(PATIENCE);
                break;
            case "subscribe":
                subscribe(client, command);
                break;
            case "unsubscribe":
                client.getSubscription(command.channel).unsubscribe();
                break;
            case "send":
                client.send(command.payload(), error -> answer(command, error, JsonNull.INSTANCE));
                return;
            default:
                ask(command, client);
                return;
        }
        answer(command, null, JsonNull.INSTANCE);
    }

    /** The calls that the server answers. */
    private void ask(Command command, Client client) {
        String channel = command.channel;
        switch (command.call) {
            case "publish":
                client.publish(channel, command.payload(), (error, result) ->
                        answer(command, error, JsonNull.INSTANCE));
                break;
            case "history":
                client.history(channel, read(command.options), (error, result) ->
                        answer(command, error, result == null ? null : history(result)));
                break;
            case "presence":
                client.presence(channel, (error, result) ->
                        answer(command, error, result == null ? null : present(result)));
                break;
            case "presence_stats":
                client.presenceStats(channel, (error, result) ->
                        answer(command, error, result == null ? null : counted(result)));
                break;
            case "rpc":
                client.rpc(command.method, command.payload(), (error, result) ->
                        answer(command, error, result == null ? null : payload(result.getData())));
                break;
            default:
                throw new IllegalArgumentException("unknown call " + command.call);
        }
    }

    private void answer(Command command, Throwable error, JsonElement result) {
        JsonObject answer = new JsonObject();
        answer.addProperty("id", command.id);
        if (error == null) {
            answer.add("result", result);
        } else {
            JsonObject why = new JsonObject();
            why.addProperty("code", code(error));
            why.addProperty("message", String.valueOf(error.getMessage()));
            answer.add("error", why);
        }
        emit(answer);
    }

    private void open(Command command) {
        Settings settings = command.options;
        JsonObject about = new JsonObject();
        about.addProperty("key", command.key);
        Options options = new Options();
        options.setMinReconnectDelay(MIN_DELAY);
        options.setMaxReconnectDelay(MAX_DELAY);
        options.setTimeout(PATIENCE);
        if (settings.token != null) {
            options.setToken(settings.token);
        }
        if (settings.data != null) {
            options.setData(bytes(settings.data));
        }
        if (settings.tokens != null) {
            Tokens tokens = new Tokens(settings.tokens, about);
            options.setTokenGetter(new ConnectionTokenGetter() {
                @Override
                public void getConnectionToken(ConnectionTokenEvent event, TokenCallback callback) {
                    tokens.next(callback);
                }
            });
        }
        clients.put(command.key, new Client(command.url, options, new Heard(about)));
    }

    private void subscribe(Client client, Command command) throws DuplicateSubscriptionException {
        Subscription subscription = client.getSubscription(command.channel);
        if (subscription == null) {
            JsonObject about = new JsonObject();
            about.addProperty("key", command.key);
            about.addProperty("channel", command.channel);
            subscription = client.newSubscription(
                    command.channel, options(command.options, about), new SubscriptionHeard(about));
        }
        subscription.subscribe();
    }

    private SubscriptionOptions options(Settings settings, JsonObject about) {
        SubscriptionOptions options = new SubscriptionOptions();
        options.setMinResubscribeDelay(MIN_DELAY);
        options.setMaxResubscribeDelay(MAX_DELAY);
        options.setPositioned(settings.positioned);
        options.setRecoverable(settings.recoverable);
        options.setJoinLeave(settings.join_leave);
        if (settings.token != null) {
            options.setToken(settings.token);
        }
        if (settings.data != null) {
            options.setData(bytes(settings.data));
        }
        if (settings.tokens != null) {
            Tokens tokens = new Tokens(settings.tokens, about);
            options.setTokenGetter(new SubscriptionTokenGetter() {
                @Override
                public void getSubscriptionToken(SubscriptionTokenEvent event, TokenCallback callback) {
                    tokens.next(callback);
                }
            });
        }
        return options;
    }

    private static HistoryOptions read(Settings settings) {
        HistoryOptions.Builder options =
                new HistoryOptions.Builder().withLimit(settings.limit).withReverse(settings.reverse);
        if (settings.since != null) {
            options.withSince(new StreamPosition(settings.since.offset, settings.since.epoch));
        }
        return options.build();
    }

    /** Gives the tokens one after the other, and says so each time. */
    private final class Tokens {
        private final Queue<String> tokens = new ArrayDeque<>();
        private final JsonObject about;

        Tokens(String[] tokens, JsonObject about) {
            for (String token : tokens) {
                this.tokens.add(token);
            }
            this.about = about;
        }

        synchronized void next(TokenCallback callback) {
            tell("token", about, new JsonObject());
            String token = tokens.poll();
            callback.Done(token == null ? new UnauthorizedException() : null, token);
        }
    }

    // -- Events

    private void tell(String event, JsonObject about, JsonObject what) {
        JsonObject told = new JsonObject();
        told.addProperty("event", event);
        about.entrySet().forEach(one -> told.add(one.getKey(), one.getValue()));
        what.entrySet().forEach(one -> told.add(one.getKey(), one.getValue()));
        emit(told);
    }

    private final class Heard extends EventListener {
        private final JsonObject about;

        Heard(JsonObject about) {
            this.about = about;
        }

        @Override
        public void onConnecting(Client client, ConnectingEvent event) {
            tell("connecting", about, coded(event.getCode(), event.getReason()));
        }

        @Override
        public void onConnected(Client client, ConnectedEvent event) {
            JsonObject told = new JsonObject();
            told.addProperty("id", event.getClient());
            told.add("data", value(event.getData()));
            tell("connected", about, told);
        }

        @Override
        public void onDisconnected(Client client, DisconnectedEvent event) {
            tell("disconnected", about, coded(event.getCode(), event.getReason()));
        }

        @Override
        public void onError(Client client, ErrorEvent event) {
            tell("error", about, failed(event.getError()));
        }

        @Override
        public void onMessage(Client client, MessageEvent event) {
            tell("message", about, payload(event.getData()));
        }

        // Server-side subscriptions are told of by the client.

        private JsonObject in(String channel) {
            JsonObject about = this.about.deepCopy();
            about.addProperty("channel", channel);
            return about;
        }

        @Override
        public void onSubscribing(Client client, ServerSubscribingEvent event) {
            tell("subscribing", in(event.getChannel()), new JsonObject());
        }

        @Override
        public void onSubscribed(Client client, ServerSubscribedEvent event) {
            JsonObject told = subscribed(
                    event.getRecoverable(), event.getPositioned(), event.getStreamPosition(),
                    event.wasRecovering(), event.getRecovered(), event.getData());
            tell("subscribed", in(event.getChannel()), told);
        }

        @Override
        public void onUnsubscribed(Client client, ServerUnsubscribedEvent event) {
            tell("unsubscribed", in(event.getChannel()), new JsonObject());
        }

        @Override
        public void onPublication(Client client, ServerPublicationEvent event) {
            JsonObject told =
                    publication(event.getData(), event.getOffset(), event.getTags(), event.getInfo());
            tell("publication", in(event.getChannel()), told);
        }

        @Override
        public void onJoin(Client client, ServerJoinEvent event) {
            tell("join", in(event.getChannel()), member(event.getInfo()));
        }

        @Override
        public void onLeave(Client client, ServerLeaveEvent event) {
            tell("leave", in(event.getChannel()), member(event.getInfo()));
        }
    }

    private final class SubscriptionHeard extends SubscriptionEventListener {
        private final JsonObject about;

        SubscriptionHeard(JsonObject about) {
            this.about = about;
        }

        @Override
        public void onSubscribing(Subscription subscription, SubscribingEvent event) {
            tell("subscribing", about, coded(event.getCode(), event.getReason()));
        }

        @Override
        public void onSubscribed(Subscription subscription, SubscribedEvent event) {
            JsonObject told = subscribed(
                    event.getRecoverable(), event.getPositioned(), event.getStreamPosition(),
                    event.wasRecovering(), event.getRecovered(), event.getData());
            tell("subscribed", about, told);
        }

        @Override
        public void onUnsubscribed(Subscription subscription, UnsubscribedEvent event) {
            tell("unsubscribed", about, coded(event.getCode(), event.getReason()));
        }

        @Override
        public void onPublication(Subscription subscription, PublicationEvent event) {
            JsonObject told =
                    publication(event.getData(), event.getOffset(), event.getTags(), event.getInfo());
            tell("publication", about, told);
        }

        @Override
        public void onJoin(Subscription subscription, JoinEvent event) {
            tell("join", about, member(event.getInfo()));
        }

        @Override
        public void onLeave(Subscription subscription, LeaveEvent event) {
            tell("leave", about, member(event.getInfo()));
        }

        @Override
        public void onError(Subscription subscription, SubscriptionErrorEvent event) {
            tell("error", about, failed(event.getError()));
        }
    }

    // -- The SDK's values as tests see them

    private static byte[] bytes(JsonElement value) {
        return GSON.toJson(value).getBytes(StandardCharsets.UTF_8);
    }

    /** The JSON value that these bytes are; no bytes are no data. */
    private static JsonElement value(byte[] data) {
        return data == null || data.length == 0 ? JsonNull.INSTANCE : payload(data).get("data");
    }

    private static JsonObject payload(byte[] data) {
        JsonObject told = new JsonObject();
        try {
            String text = StandardCharsets.UTF_8.newDecoder().decode(ByteBuffer.wrap(data)).toString();
            told.add("data", STRICT.fromJson(text));
        } catch (IOException | JsonParseException notJson) {
            told.addProperty("b64data", Base64.getEncoder().encodeToString(data));
        }
        return told;
    }

    private static JsonElement info(ClientInfo one) {
        // The SDK gives an empty one of a publication that has none.
        if (one == null || one.getClient().isEmpty()) {
            return JsonNull.INSTANCE;
        }
        JsonObject told = new JsonObject();
        told.addProperty("user", one.getUser());
        told.addProperty("client", one.getClient());
        told.add("conn_info", value(one.getConnInfo()));
        told.add("chan_info", value(one.getChanInfo()));
        return told;
    }

    private static JsonObject member(ClientInfo one) {
        JsonObject told = new JsonObject();
        told.add("info", info(one));
        return told;
    }

    private static JsonObject publication(
            byte[] data, long offset, Map<String, String> tags, ClientInfo info) {
        JsonObject told = payload(data);
        told.addProperty("offset", offset);
        told.add("tags", GSON.toJsonTree(tags == null ? new HashMap<String, String>() : tags));
        told.add("info", info(info));
        return told;
    }

    private static JsonObject history(HistoryResult result) {
        JsonArray publications = new JsonArray();
        for (Publication one : result.getPublications()) {
            // This SDK has no tags here.
            publications.add(publication(one.getData(), one.getOffset(), null, one.getInfo()));
        }
        JsonObject told = new JsonObject();
        told.add("publications", publications);
        told.addProperty("offset", result.getOffset());
        told.addProperty("epoch", result.getEpoch());
        return told;
    }

    private static JsonObject present(PresenceResult result) {
        JsonObject told = new JsonObject();
        result.getClients().forEach((id, one) -> told.add(id, info(one)));
        return told;
    }

    private static JsonObject counted(PresenceStatsResult result) {
        JsonObject told = new JsonObject();
        told.addProperty("num_clients", result.getNumClients());
        told.addProperty("num_users", result.getNumUsers());
        return told;
    }

    private static JsonObject subscribed(
            Boolean recoverable, Boolean positioned, StreamPosition position,
            Boolean wasRecovering, Boolean recovered, byte[] data) {
        JsonObject told = new JsonObject();
        told.addProperty("recoverable", recoverable);
        told.addProperty("positioned", positioned);
        told.add("position", position(position));
        told.addProperty("was_recovering", wasRecovering);
        told.addProperty("recovered", recovered);
        told.add("data", value(data));
        return told;
    }

    /** The getters of a position are not public. */
    private static JsonElement position(StreamPosition position) {
        if (position == null) {
            return JsonNull.INSTANCE;
        }
        JsonObject told = new JsonObject();
        try {
            Method offset = StreamPosition.class.getDeclaredMethod("getOffset");
            Method epoch = StreamPosition.class.getDeclaredMethod("getEpoch");
            offset.setAccessible(true);
            epoch.setAccessible(true);
            told.addProperty("offset", (Long) offset.invoke(position));
            told.addProperty("epoch", (String) epoch.invoke(position));
        } catch (ReflectiveOperationException error) {
            throw new IllegalStateException(error);
        }
        return told;
    }

    private static JsonObject coded(int code, String reason) {
        JsonObject told = new JsonObject();
        told.addProperty("code", code);
        told.addProperty("reason", reason);
        return told;
    }

    private static JsonObject failed(Throwable error) {
        return coded(code(error), String.valueOf(error.getMessage()));
    }

    private static int code(Throwable error) {
        for (Throwable one = error; one != null; one = one.getCause()) {
            if (one instanceof ReplyError) {
                return ((ReplyError) one).getCode();
            }
        }
        return -1;
    }
}
