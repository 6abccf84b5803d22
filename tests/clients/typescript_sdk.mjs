// The TypeScript SDK as a client over stdio. Lists the tools, compiles each schema with Ajv as it comes by default, and makes
// one call, whose result the SDK validates. Prints the names of the tools as JSON.
//
// Usage: node typescript_sdk.mjs DIRECTORY COMMAND [ARGUMENT...], where the packages are installed in DIRECTORY.

import { createRequire } from "node:module";
import path from "node:path";

const [directory, command, ...args] = process.argv.slice(2);
const require = createRequire(path.join(directory, "package.json"));
const { Client } = require("@modelcontextprotocol/sdk/client/index.js");
const { StdioClientTransport } = require("@modelcontextprotocol/sdk/client/stdio.js");
const { default: Ajv } = require("ajv");

const client = new Client({ name: "test", version: "1" });
await client.connect(new StdioClientTransport({ command, args, env: process.env }));
// Compiles the output schemas, as far as the SDK keeps them.
const { tools } = await client.listTools();
const response = await client.request({ method: "tools/list" }, { parse: (raw) => raw, safeParse: (data) => ({ success: true, data }) });
for (const tool of response.tools) {
  for (const schema of [tool.inputSchema, tool.outputSchema]) {
    new Ajv().compile(schema);
  }
}
const called = await client.callTool({ name: "vm_list_environments", arguments: {} });
if (called.isError || called.structuredContent.result.length === 0) {
  throw new Error(JSON.stringify(called));
}
await client.close();
console.log(JSON.stringify(tools.map((tool) => tool.name)));
