// Reads event streams with the EventSource of two versions of one package. Each line of stdin holds
// the segments in which one response's body arrives, in base64; the answer holds the data of the
// events that each version gave out. No network: the segments arrive exactly as they are given.

import { Agent } from "node:http";
import http from "node:http";
import { createInterface } from "node:readline";
import { Duplex } from "node:stream";
import { setImmediate as turn } from "node:timers/promises";
import { EventSource } from "eventsource";
import EventSource2 from "eventsource2";

const HEAD = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";

// One connection to a server that has these segments to say; the first one comes with the head.
class Connection extends Duplex {
  constructor(segments) {
    super();
    this.segments = segments;
  }
  _read() {}
  _write(_request, _encoding, done) {
    done();
    this.answer();
  }
  async answer() {
    const [first, ...others] = this.segments;
    this.push(Buffer.concat([Buffer.from(HEAD), first]));
    for (const segment of others) {
      await turn();
      this.push(segment);
    }
    await turn();
    this.push(null);
  }
  setKeepAlive() {}
  setNoDelay() {}
  setTimeout() {}
  ref() {}
  unref() {}
}

class Scripted extends Agent {
  createConnection() {
    return new Connection(this.segments);
  }
}
http.globalAgent = new Scripted();

const body = (segments) =>
  new ReadableStream({
    async start(controller) {
      for (const segment of segments.filter(({ length }) => length > 0)) {
        controller.enqueue(new Uint8Array(segment));
        await turn();
      }
      controller.close();
    },
  });

// The data of all events until the stream ends, which an EventSource tells as an error.
const read = (make) =>
  new Promise((resolve) => {
    const heard = [];
    const source = make();
    source.onmessage = ({ data }) => heard.push(data);
    source.onerror = () => {
      source.close();
      resolve(heard);
    };
  });

const readers = {
  2: (segments) => {
    http.globalAgent.segments = segments;
    return read(() => new EventSource2("http://127.0.0.1/"));
  },
  3: (segments) => {
    const headers = { "Content-Type": "text/event-stream" };
    const fetch = async () => new Response(body(segments), { headers });
    return read(() => new EventSource("http://127.0.0.1/", { fetch }));
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const segments = JSON.parse(line).map((text) => Buffer.from(text, "base64"));
  const heard = {};
  for (const [version, reader] of Object.entries(readers)) heard[version] = await reader(segments);
  process.stdout.write(JSON.stringify(heard) + "\n");
}
process.exit(0); // a version may still wait for its time to reconnect
