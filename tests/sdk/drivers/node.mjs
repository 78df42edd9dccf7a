// The JavaScript SDK in Node: commands come in on stdin, events and results go out on stdout.

import { createInterface } from "node:readline";
import { Centrifuge, UnauthorizedError } from "centrifuge";
import { EventSource } from "eventsource";
import WebSocket from "ws";
import { makeDriver } from "./driver.js";

const emit = (value) => process.stdout.write(JSON.stringify(value) + "\n");
const handle = makeDriver(Centrifuge, UnauthorizedError, { websocket: WebSocket, eventsource: EventSource }, emit);

emit("ready");
createInterface({ input: process.stdin })
  .on("line", async (line) => emit(await handle(JSON.parse(line))))
  .on("close", () => process.exit(0));
