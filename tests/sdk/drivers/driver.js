// Drives the JavaScript SDK by commands, in Node and in a page alike; drivers/python.py is its
// twin. A command names one client by `key`; what that client hears is emitted as events. The
// values of both drivers have the same names, so that a scenario does not see which one it is.

const RECONNECT = { minReconnectDelay: 20, maxReconnectDelay: 200 };
const RESUBSCRIBE = { minResubscribeDelay: 20, maxResubscribeDelay: 200 };

const info = (one) =>
  one && { user: one.user, client: one.client, conn_info: one.connInfo, chan_info: one.chanInfo };

const publication = (one) => ({
  data: one.data,
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
  data: one.data,
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
  connected: (one) => ({ id: one.client, data: one.data }),
  disconnected: coded,
  message: (one) => ({ data: one.data }),
  error: failed,
};
// Server-side subscriptions are told of by the client.
const SERVER_SIDE = { ...SUBSCRIPTION, unsubscribed: () => ({}), subscribing: () => ({}) };
delete SERVER_SIDE.error;

// `eventSources` are the implementations that the option `eventsource` may name; a browser has its own.
export function makeDriver(Centrifuge, UnauthorizedError, settings, emit, eventSources = {}) {
  const clients = new Map();

  // Gives the tokens one after the other, and says so each time.
  const fromList = (key, tokens, channel) => async () => {
    emit({ key, event: "token", channel });
    if (tokens.length === 0) throw new UnauthorizedError("no more tokens");
    return tokens.shift();
  };

  function open({ key, url, options }) {
    const { tokens, transports, eventsource, ...rest } = options;
    if (eventsource in eventSources) rest.eventsource = eventSources[eventsource];
    if (tokens) rest.getToken = fromList(key, tokens);
    const client = new Centrifuge(transports ?? url, { ...RECONNECT, ...settings, ...rest });
    for (const [event, tell] of Object.entries(CLIENT)) {
      client.on(event, (one) => emit({ key, event, ...tell(one) }));
    }
    for (const [event, tell] of Object.entries(SERVER_SIDE)) {
      client.on(event, (one) => emit({ key, event, channel: one.channel, ...tell(one) }));
    }
    clients.set(key, client);
  }

  function subscribe(client, { key, channel, options }) {
    let subscription = client.getSubscription(channel);
    if (subscription === null) {
      const { tokens, join_leave: joinLeave, tags_filter: tagsFilter, ...rest } = options;
      if (tokens) rest.getToken = fromList(key, tokens, channel);
      if (joinLeave) rest.joinLeave = joinLeave;
      if (tagsFilter) rest.tagsFilter = tagsFilter;
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
    publish: async (client, { channel, data }) => {
      await client.publish(channel, data);
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
    rpc: async (client, { method, data }) => (await client.rpc(method, data)).data,
    send: async (client, { data }) => client.send(data),
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
      return { id, result: (await methods[call](clients.get(key), command)) ?? null };
    } catch (error) {
      return { id, error: { code: error.code ?? -1, message: String(error.message ?? error) } };
    }
  };
}
