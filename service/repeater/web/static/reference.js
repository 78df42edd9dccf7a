// Shows openapi.json. Everything goes into the page as text, never as markup.
"use strict";

function element(name, attributes, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function nameOf(reference) {
  return reference.split("/").pop();
}

// Describes a value of this schema in a few words; objects are links with their names.
function kindOf(schema) {
  if (schema.$ref) {
    const name = nameOf(schema.$ref);
    return [element("a", { href: "#" + name }, name)];
  }
  if (schema.anyOf) {
    return schema.anyOf.flatMap((one, index) => (index ? [" or ", ...kindOf(one)] : kindOf(one)));
  }
  if (schema.enum) return [schema.enum.map((one) => JSON.stringify(one)).join(" or ")];
  if (schema.type === "array") return ["list of ", ...kindOf(schema.items || {})];
  if (schema.type === "object" && schema.properties) {
    const fields = Object.entries(schema.properties);
    const inner = fields.flatMap(([name, one], index) =>
      [index ? ", " : "", name + ": ", ...kindOf(one)]);
    return ["{", ...inner, "}"];
  }
  if (schema.type === "object" && schema.additionalProperties) {
    return ["map to ", ...kindOf(schema.additionalProperties)];
  }
  return [schema.type || "any JSON"];
}

function table(heads, rows) {
  const head = element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text)));
  const body = rows.map((cells) =>
    element("tr", {}, ...cells.map((cell) => element("td", {}, ...cell))));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...body));
}

function fieldsOf(schema) {
  const needed = new Set(schema.required || []);
  const rows = Object.entries(schema.properties || {}).map(([name, one]) => [
    [element("code", {}, name)],
    kindOf(one),
    [needed.has(name) ? "yes" : ""],
    [one.default === undefined || one.default === null ? "" : JSON.stringify(one.default)],
  ]);
  return rows.length ? table(["Field", "Kind", "Needed", "Default"], rows) : "No fields.";
}

function example(path, method, schema) {
  const fields = {};
  for (const name of schema.required || []) {
    fields[name] = schema.properties[name].type === "array" ? [] : "...";
  }
  const body = method === "post" ? ` \\\n  -d '${JSON.stringify(fields)}'` : "";
  const key = method === "post" ? ' -H "X-API-Key: $KEY"' : "";
  const base = location.href.replace(/\/docs.*$/, "");
  return element("pre", {}, `curl${key} ${base}${path}${body}`);
}

function section(path, method, operation, schemas) {
  const made = element("section", { id: operation.operationId });
  made.append(element("h2", {}, element("code", {}, `${method.toUpperCase()} ${path}`)));
  made.append(element("p", {}, operation.summary || ""));
  const [type, content] = Object.entries(operation.requestBody?.content || {})[0] || [];
  const name = content?.schema.$ref ? nameOf(content.schema.$ref) : "";
  const schema = name ? schemas[name] : {};
  for (const text of [operation.description, schema.description]) {
    if (text) made.append(element("p", {}, text));
  }
  if (type) made.append(element("h3", {}, `Body: ${type}`));
  if (name) made.append(fieldsOf(schema));
  if (type !== "application/x-ndjson") made.append(example(path, method, schema));
  made.append(element("h3", {}, "Answers"));
  const answers = Object.entries(operation.responses).map(([status, answer]) => [
    [element("code", {}, status)],
    [answer.description],
    Object.values(answer.content || {}).flatMap((one, index) =>
      (index ? [" or ", ...kindOf(one.schema)] : kindOf(one.schema))),
  ]);
  made.append(table(["Status", "When", "Body"], answers));
  return made;
}

function show(description) {
  const { info, paths, components } = description;
  document.getElementById("about").textContent = `${info.title} ${info.version}\n${info.description}`;
  const contents = document.getElementById("contents");
  const operations = document.getElementById("operations");
  for (const [path, methods] of Object.entries(paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      contents.append(element("a", { href: "#" + operation.operationId }, path));
      operations.append(section(path, method, operation, components.schemas));
    }
  }
  for (const [name, schema] of Object.entries(components.schemas)) {
    const made = element("section", { id: name }, element("h2", {}, name));
    if (schema.description) made.append(element("p", {}, schema.description));
    made.append(fieldsOf(schema));
    operations.append(made);
  }
}

fetch("openapi.json")
  .then((answer) => {
    if (!answer.ok) throw new Error(`openapi.json: ${answer.status}`);
    return answer.json();
  })
  .then(show)
  .catch((error) => {
    document.getElementById("about").textContent = String(error);
  });
