// The JavaScript SDK in Node: commands come in on stdin, events and results go out on stdout.

import { createInterface } from "node:readline";
import * as json from "centrifuge";
import * as protobuf from "centrifuge/build/protobuf";
import { EventSource } from "eventsource";
import EventSource2 from "eventsource2";
import WebSocket from "ws";
import { makeDriver } from "./driver.js";

const emit = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const eventSources = { "": EventSource, "eventsource 2": EventSource2 };
const settings = { websocket: WebSocket, eventsource: EventSource };
const handle = makeDriver({ json, protobuf }, settings, emit, eventSources);

emit("ready");
createInterface({ input: process.stdin })
  .on("line", async (line) => emit(await handle(JSON.parse(line))))
  .on("close", () => process.exit(0));
