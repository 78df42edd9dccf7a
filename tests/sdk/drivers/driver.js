// Drives the JavaScript SDK by commands, in Node and in a page alike; drivers/python.py and the
// programs of Go and Java are its twins. A command names one client by `key`; what that client hears
// is emitted as events. The values of all drivers have the same names, so that a scenario does not
// see which one it is. With Protobuf the SDK gives and takes bytes: data that is JSON is told as
// `data`, anything else as `b64data`.

const RECONNECT = { minReconnectDelay: 20, maxReconnectDelay: 200 };
const RESUBSCRIBE = { minResubscribeDelay: 20, maxResubscribeDelay: 200 };

const text = (bytes) => new TextDecoder("utf-8", { fatal: true }).decode(bytes);

// Any data of the SDK: bytes become the JSON value that they are; no bytes are no data.
function value(data) {
  if (!(data instanceof Uint8Array)) return data;
  return data.length === 0 ? undefined : JSON.parse(text(data));
}

function payload(data) {
  try {
    return { data: value(data) };
  } catch {
    return { b64data: btoa(Array.from(data, (one) => String.fromCharCode(one)).join("")) };
  }
}

const bytesOf = (base64) => Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
const encoded = (data) => new TextEncoder().encode(JSON.stringify(data));

const info = (one) =>
  one && {
    user: one.user,
    client: one.client,
    conn_info: value(one.connInfo),
    chan_info: value(one.chanInfo),
  };

const publication = (one) => ({
  ...payload(one.data),
  offset: one.offset || 0,
  tags: one.tags || {},
  info: info(one.info) || null,
});

const subscribed = (one) => ({
  recoverable: one.recoverable,
  positioned: one.positioned,
  position: one.streamPosition || null,
  was_recovering: one.wasRecovering,
  recovered: one.recovered,
  data: value(one.data),
});

const coded = (one) => ({ code: one.code, reason: one.reason });
const failed = (one) => ({ code: one.error.code, reason: one.error.message });

// What is told of each event, of a subscription and of the client itself.
const SUBSCRIPTION = {
  subscribing: coded,
  subscribed,
  unsubscribed: coded,
  publication,
  join: (one) => ({ info: info(one.info) }),
  leave: (one) => ({ info: info(one.info) }),
  error: failed,
};
const CLIENT = {
  connecting: coded,
  connected: (one) => ({ id: one.client, data: value(one.data) }),
  disconnected: coded,
  message: (one) => payload(one.data),
  error: failed,
};
// Server-side subscriptions are told of by the client.
const SERVER_SIDE = { ...SUBSCRIPTION, unsubscribed: () => ({}), subscribing: () => ({}) };
delete SERVER_SIDE.error;

// `builds` has the SDK's classes for each format. `eventSources` are the implementations that the
// option `eventsource` may name; a browser has its own.
export function makeDriver(builds, settings, emit, eventSources = {}) {
  const clients = new Map();

  // Gives the tokens one after the other, and says so each time.
  const fromList = (key, tokens, channel) => async () => {
    emit({ key, event: "token", channel });
    if (tokens.length === 0) throw new (clients.get(key).build.UnauthorizedError)("no more tokens");
    return tokens.shift();
  };

  function open({ key, url, protobuf, options }) {
    const { tokens, transports, eventsource, ...rest } = options;
    if (eventsource in eventSources) rest.eventsource = eventSources[eventsource];
    if (tokens) rest.getToken = fromList(key, tokens);
    if (protobuf && "data" in rest) rest.data = encoded(rest.data);
    const build = protobuf ? builds.protobuf : builds.json;
    const client = new build.Centrifuge(transports ?? url, { ...RECONNECT, ...settings, ...rest });
    for (const [event, tell] of Object.entries(CLIENT)) {
      client.on(event, (one) => emit({ key, event, ...tell(one) }));
    }
    for (const [event, tell] of Object.entries(SERVER_SIDE)) {
      client.on(event, (one) => emit({ key, event, channel: one.channel, ...tell(one) }));
    }
    clients.set(key, { client, build, protobuf });
  }

  // What the SDK takes for the data of a command.
  function taken({ key, data, b64data }) {
    if (b64data !== undefined) return bytesOf(b64data);
    return clients.get(key).protobuf ? encoded(data) : data;
  }

  function subscribe(client, { key, channel, options }) {
    let subscription = client.getSubscription(channel);
    if (subscription === null) {
      const { tokens, join_leave: joinLeave, tags_filter: tagsFilter, ...rest } = options;
      if (tokens) rest.getToken = fromList(key, tokens, channel);
      if (joinLeave) rest.joinLeave = joinLeave;
      if (tagsFilter) rest.tagsFilter = tagsFilter;
      if ("data" in rest) rest.data = taken({ key, data: rest.data });
      subscription = client.newSubscription(channel, { ...RESUBSCRIBE, ...rest });
      for (const [event, tell] of Object.entries(SUBSCRIPTION)) {
        subscription.on(event, (one) => emit({ key, event, channel, ...tell(one) }));
      }
    }
    subscription.subscribe();
  }

  const methods = {
    connect: async (client) => client.connect(),
    disconnect: async (client) => client.disconnect(),
    subscribe: async (client, command) => subscribe(client, command),
    unsubscribe: async (client, { channel }) => client.getSubscription(channel).unsubscribe(),
    publish: async (client, command) => {
      await client.publish(command.channel, taken(command));
    },
    history: async (client, { channel, options }) => {
      const { publications, offset, epoch } = await client.history(channel, options);
      return { publications: publications.map(publication), offset, epoch };
    },
    presence: async (client, { channel }) => {
      const { clients: present } = await client.presence(channel);
      return Object.fromEntries(Object.entries(present).map(([id, one]) => [id, info(one)]));
    },
    presence_stats: async (client, { channel }) => {
      const { numClients, numUsers } = await client.presenceStats(channel);
      return { num_clients: numClients, num_users: numUsers };
    },
    rpc: async (client, command) => payload((await client.rpc(command.method, taken(command))).data),
    send: async (client, command) => client.send(taken(command)),
    close: async (client, { key }) => {
      client.disconnect();
      clients.delete(key);
    },
  };

  return async function handle(command) {
    const { id, call, key } = command;
    try {
      if (call === "open") {
        open(command);
        return { id, result: null };
      }
      return { id, result: (await methods[call](clients.get(key).client, command)) ?? null };
    } catch (error) {
      return { id, error: { code: error.code ?? -1, message: String(error.message ?? error) } };
    }
  };
}
