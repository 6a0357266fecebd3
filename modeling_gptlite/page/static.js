// The page without a server: the model runs here, in ONNX Runtime through transformers.js.
const facts = JSON.parse(document.querySelector("#facts").textContent);
const byId = (id) => document.getElementById(id);
const VISIBLE = { " ": "␣", "\n": "↵", "\t": "⇥" };
const visible = (text) => VISIBLE[text] ?? text;
const ALTERNATIVES = 5;
const MILLISECONDS_BETWEEN_UPDATES = 30;

// ---- The model ------------------------------------------------------------------------------------------------------

// A model of the Hub instead of the folder beside the page: index.html?model=USER/NAME
const hub = new URLSearchParams(location.search).get("model");
let library, model, tokenizer, context, ends = facts.ends;

async function load(report) {
  const wasm = fetch(facts.wasm.address, { integrity: facts.wasm.integrity });
  library = await import("@huggingface/transformers");
  const { env } = library;
  env.useWasmCache = false;
  Object.assign(env.backends.onnx.wasm, {
    wasmBinary: await (await wasm).arrayBuffer(), wasmPaths: undefined, numThreads: 1,
  });
  Object.assign(env, hub ? { allowLocalModels: false } : {
    allowLocalModels: true, allowRemoteModels: false, localModelPath: "./",
    useBrowserCache: false, // which does not ask whether the file has changed
  });
  const name = hub ?? "model", options = { dtype: hub ? "fp32" : facts.dtype, device: "wasm" };
  const progress_callback = ({ status, file, progress }) =>
    status == "progress" && file.endsWith(".onnx") && report(`Loading the model: ${Math.round(progress)} %`);
  [tokenizer, model] = await Promise.all([
    library.AutoTokenizer.from_pretrained(name, options),
    library.AutoModelForCausalLM.from_pretrained(name, { ...options, progress_callback }),
  ]);
  context = model.config.max_position_embeddings ?? model.config.n_positions ?? facts.context;
  if (hub) {
    ends = [model.generation_config?.eos_token_id ?? []].flat();
    for (const heading of document.querySelectorAll("title, h1, h2")) heading.textContent = hub;
    document.querySelector("#texts .facts").remove(); // of the model beside the page
  }
}

function encode(prompt) {
  const ids = (text, add_special_tokens = false) => tokenizer.encode(text, { add_special_tokens });
  const unknown = [...new Set(prompt)].filter((c) => tokenizer.unk_token && ids(c).includes(tokenizer.unk_token_id));
  if (unknown.length) {
    const code = (c) => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");
    const named = unknown.map((c) => `'${c}' (${code(c)})`).join(", ");
    throw new Error(`Not in the vocabulary: ${named}. Please remove them from the prompt.`);
  }
  const start = tokenizer.bos_token || tokenizer.eos_token;
  if (!prompt && !start) throw new Error("The model has no token that begins a text. Please write a prompt.");
  if (!prompt) return ids(start);
  const begun = ids(prompt, !(tokenizer.bos_token && prompt.startsWith(tokenizer.bos_token)));
  const isEnd = (end) => end && !prompt.endsWith(end) && begun.at(-1) == ids(end)[0];
  return [tokenizer.eos_token, tokenizer.sep_token].some(isEnd) ? begun.slice(0, -1) : begun;
}

// The logits after `ids`, and the cache; `past` is the cache of the tokens before them.
async function predict(ids, past, before) {
  const tensor = (values) => new library.Tensor("int64", BigInt64Array.from(values, BigInt), [1, values.length]);
  const output = await model.forward({
    input_ids: tensor(ids),
    attention_mask: tensor(Array(before + ids.length).fill(1)),
    position_ids: tensor(ids.map((_, i) => before + i)),
    past_key_values: past,
  });
  const entries = Object.entries(output).filter(([name]) => name.startsWith("present"));
  const size = output.logits.dims[2];
  return {
    logits: Array.from(output.logits.data.slice(-size)),
    cache: Object.fromEntries(entries.map(([name, value]) => [name.replace("present", "past_key_values"), value])),
  };
}

// Continues `ids` token by token. A full context is handled as in PyTorch: the newest half is kept and read again.
async function* generate(ids, { length, seed, ...settings }) {
  const random = generator(seed), all = ids.slice(-context);
  let start = 0, unread = all, past = null;
  let decoded = all.length, begin = decoded - 1; // ids that are text already, and those that are decoded with new ones
  for (let i = 0; i < length; i++) {
    if (all.length - start > context) {
      start = all.length - Math.max(Math.floor(context / 2), 1);
      unread = all.slice(start);
      past = null;
    }
    const { logits, cache } = await predict(unread, past, all.length - start - unread.length);
    const probabilities = softmax(logits), order = sorted(probabilities);
    const id = draw(logits, settings, random);
    if (ends.includes(id)) return;
    past = cache;
    unread = [id];
    all.push(id);
    const best = order.slice(0, ALTERNATIVES).map((id) => [visible(tokenizer.decode([id])), probabilities[id]]);
    const rest = Math.max(0, 1 - best.reduce((sum, [, p]) => sum + p, 0));
    const before = tokenizer.decode(all.slice(begin, decoded));
    let text = tokenizer.decode(all.slice(begin)).slice(before.length);
    if (text.endsWith("\ufffd")) text = ""; // a character of several tokens is the text of the last one
    else [begin, decoded] = [decoded, all.length];
    yield { text, p: probabilities[id], best, rest };
  }
}

// ---- Sampling -------------------------------------------------------------------------------------------------------

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b)), weights = logits.map((x) => Math.exp(x - largest));
  const sum = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / sum);
}

const sorted = (weights) => [...weights.keys()].sort((a, b) => weights[b] - weights[a]);

// As transformers' `generate` samples: temperature, then top-k, then top-p.
function draw(logits, { temperature, top_k, top_p }, random) {
  const weights = softmax(logits.map((x) => x / temperature));
  let order = sorted(weights);
  if (top_k) order = order.slice(0, top_k);
  const total = order.reduce((sum, id) => sum + weights[id], 0);
  let before = 0;
  order = order.filter((id) => {
    const kept = before < top_p * total;
    before += weights[id];
    return kept;
  });
  let left = random() * order.reduce((sum, id) => sum + weights[id], 0);
  return order.find((id) => (left -= weights[id]) < 0) ?? order.at(-1);
}

// mulberry32: numbers in [0, 1) that a seed determines.
function generator(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

// ---- The page -------------------------------------------------------------------------------------------------------

const element = (name, properties) => Object.assign(document.createElement(name), properties);

function say(message, className = "status") {
  const line = element("p", { className, textContent: message });
  line.setAttribute("role", className);
  byId("status").replaceChildren(line);
  return line;
}

function copyButton(text) {
  const button = element("button", { type: "button", className: "copy", textContent: "Copy" });
  if (text !== undefined) button.dataset.copy = text;
  return button;
}

function begin(prompt, seed) {
  const bar = element("div", { className: "bar" }), text = element("div", { className: "text", tabIndex: 0 });
  bar.append(element("span", { textContent: `seed ${seed}` }), copyButton());
  text.setAttribute("aria-label", `text of seed ${seed}`);
  text.append(element("b", { textContent: prompt }));
  byId("result").replaceChildren(bar, text);
  return text;
}

function render({ text, p, best, rest }) {
  const token = element("i", { textContent: text, className: text == "\n" ? "newline" : "" });
  token.style.setProperty("--p", p.toFixed(2));
  token.dataset.thought = JSON.stringify({ token: visible(text), p, best, rest });
  return token;
}

const settings = () => Object.fromEntries(
  [...document.querySelectorAll("#settings input[type=range]")].map((input) => [input.id, input.valueAsNumber]),
);

let stopped = true;

async function write() {
  if (!stopped || !model) return;
  const prompt = byId("prompt").value;
  let ids;
  try {
    ids = encode(prompt);
  } catch (error) {
    byId("result").replaceChildren();
    return say(error.message, "error");
  }
  if (!byId("keep_seed").checked) byId("seed").value = Math.floor(Math.random() * facts.seeds);
  const seed = byId("seed").valueAsNumber || 0, chosen = { ...settings(), seed };
  stopped = false;
  show();
  try {
    await stream(begin(prompt, seed), ids, chosen);
  } catch (error) {
    say(`The model has failed: ${error.message}`, "error");
  }
  stopped = true;
  show();
}

async function stream(text, ids, chosen) {
  const began = performance.now();
  let number = 0, updated = began;
  const report = () => {
    const seconds = (performance.now() - began) / 1000, how = stopped && number < chosen.length ? ", stopped" : "";
    const speed = `${number} ${facts.unit}s in ${seconds.toFixed(1)} s, ${Math.round(number / seconds)} per second${how}.`;
    say(`${speed} Seed `).append(element("code", { textContent: chosen.seed }), " ", copyButton(chosen.seed));
  };
  for await (const token of generate(ids, chosen)) {
    text.append(render(token));
    number++;
    if (number == 1) performance.mark("first token");
    if (number == 1 || performance.now() - updated > MILLISECONDS_BETWEEN_UPDATES) {
      report();
      await new Promise((painted) => setTimeout(painted)); // lets the browser draw, and the visitor stop
      updated = performance.now();
    }
    if (stopped) break;
  }
  report();
}

function show() {
  byId("write").hidden = !stopped;
  byId("stop").hidden = stopped;
}

function connect() {
  for (const input of document.querySelectorAll("#settings input[type=range]")) {
    const output = input.closest("label").querySelector("output"), update = () => (output.value = input.value);
    input.addEventListener("input", update);
    update();
  }
  for (const prompt of facts.prompts) {
    const button = element("button", { type: "button", textContent: visible(prompt) });
    button.addEventListener("click", () => {
      byId("prompt").value = prompt;
      write();
    });
    byId("examples").append(button);
  }
  byId("prompt").value = facts.prompts[0] ?? "";
  byId("prompt").addEventListener("keydown", (event) => {
    if (event.key != "Enter" || !event.shiftKey) return;
    event.preventDefault();
    write();
  });
  byId("write").addEventListener("click", write);
  byId("stop").addEventListener("click", () => (stopped = true));
  byId("seed").addEventListener("input", () => (byId("keep_seed").checked = true)); // a seed that was typed is meant
}

connect();
say("Loading the model.");
try {
  await load(say);
  byId("write").disabled = false;
  write();
} catch (error) {
  say(`The model cannot be loaded: ${error.message}`, "error");
}
