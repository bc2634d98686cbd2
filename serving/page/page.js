// The page of `segue serve`: asks the server what it offers, draws over server-sent events, and shows what every call costs.

const OWN = "own";
const PREVIEWS = 12;
const PICTURES_KEPT = 12;
const PIXELATED_BELOW = 128; // pixels: smaller pictures are shown as they are, each pixel a square
const COLORS = 4;

const at = (id) => document.getElementById(id);
const element = (tag, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

let about; // what the server says of its model
let current = null; // the AbortController of the picture that is being drawn
let changed = false; // whether the form was, while a picture was being drawn
let planned = 0; // numbers the plans that are asked for, so that a late answer does not replace a newer one

// --- asking the server ------------------------------------------------------------------------------------------------

class Refused extends Error {}

// A body is an object, or text where it is written already.
async function ask(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  if (at("key").value) headers.Authorization = `Bearer ${at("key").value}`;
  const method = body ? "POST" : "GET";
  const response = await fetch(path, { method, headers, signal, body: typeof body === "object" ? JSON.stringify(body) : body });
  if (response.ok) return response;
  if (response.status === 401) at("key-field").hidden = false;
  throw new Refused((await response.json().catch(() => null))?.error?.message ?? `the server answered ${response.status}`);
}

// Every event of a stream as an object; comments, which keep a connection alive, are left out.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end; (end = text.indexOf("\n\n")) >= 0; text = text.slice(end + 2)) {
      const lines = text.slice(0, end).split("\n").filter((line) => line.startsWith("data: "));
      if (lines.length) yield JSON.parse(lines.map((line) => line.slice(6)).join("\n"));
    }
  }
}

// --- the form ---------------------------------------------------------------------------------------------------------

function offerClasses(names) {
  const groups = new Map();
  names.forEach((name, label) => {
    const genus = name.includes(" ") && !name.includes(",") ? name.split(" ")[0] : "";
    if (!groups.has(genus)) groups.set(genus, []);
    groups.get(genus).push(element("option", { value: label, textContent: name }));
  });
  for (const [genus, options] of groups) {
    at("class").append(...(genus ? [element("optgroup", { label: genus }, ...options)] : options));
  }
  at("class-label").textContent = groups.has("") ? "Class" : "Species";
}

function offerRules(rules, chosen) {
  for (const rule of rules) {
    const text = `${rule.relative_cost.toFixed(2)}×  ${rule.title}`;
    at("rule").append(element("option", { value: rule.name, textContent: text }));
  }
  at("rule").append(element("option", { value: OWN, textContent: "A rule of your own …" }));
  const named = rules.some((rule) => rule.name === chosen);
  at("rule").value = named ? chosen : OWN;
  if (!named) at("own").value = chosen;
}

const chosenRule = () => (at("rule").value === OWN ? at("own").value.trim() || "none" : at("rule").value);

// The fields that decide the plan, and those of the whole request.
const planFields = () => ({ guidance: chosenRule(), steps: Number(at("steps").value) });

function requestFields() {
  const fields = { prompt: about.takes === "class" ? at("class").value : at("prompt").value, ...planFields() };
  if (at("negative").value) fields.negative_prompt = at("negative").value;
  return fields;
}

// A seed beyond 2^53 is no number of JavaScript's: it goes into the text of the body as its digits. What is no number at all
// goes there as it is, for the server to say so.
function bodyText(fields) {
  const seed = at("seed").value.trim();
  const text = JSON.stringify(fields);
  const number = /^\d+$/.test(seed) ? BigInt(seed) : JSON.stringify(seed);
  return seed ? `${text.slice(0, -1)},"seed":${number}}` : text;
}

function showCurl() {
  const body = bodyText(requestFields()).replaceAll("'", "'\\''");
  const url = new URL("v1/images/generations", location.href);
  const headers = "-H 'Content-Type: application/json' -H 'Accept: image/png'";
  at("curl").textContent = `curl ${url} ${headers} -d '${body}' -o picture.png`;
}

// --- the plan ---------------------------------------------------------------------------------------------------------

async function showPlan() {
  const number = ++planned;
  const own = at("rule").value === OWN;
  at("own-field").hidden = !own;
  const rule = about.rules.find((one) => one.name === at("rule").value);
  at("formula").textContent = rule ? `${rule.name}: ${rule.formula}` : "";
  showCurl();
  if (!at("steps").checkValidity()) return;
  try {
    const plan = await (await ask("v1/images/plans", planFields())).json();
    if (number !== planned) return;
    changed = Boolean(current); // the plan that is shown is that of the picture which is being drawn
    if (current) return;
    drawPlan(plan);
    showProblem("");
  } catch (error) {
    if (number === planned) showProblem(error.message);
  }
}

function drawPlan(plan) {
  const branches = [...new Set(plan.runs.flatMap((run) => run.branches))];
  const color = (branch) => `branch-${branches.indexOf(branch) % COLORS}`;
  const columns = plan.runs.flatMap((run) =>
    Array.from({ length: run.calls }, () => element("div", {}, ...run.branches.map((branch) => element("i", { className: color(branch) })))),
  );
  at("calls").replaceChildren(...columns);
  at("calls").classList.toggle("many", plan.runs.some((run) => run.branches.length > 2));
  at("calls").setAttribute("aria-valuemax", plan.calls);
  showCalls(0);
  at("legend").replaceChildren(...branches.map((branch) => element("li", {}, element("i", { className: color(branch) }), branch)));
  at("cost").textContent = `${plan.calls} calls, ${plan.evaluations} evaluations: ${plan.relative_cost.toFixed(2)}× the work of unguided sampling`;
}

function showCalls(done) {
  at("calls").setAttribute("aria-valuenow", done);
  [...at("calls").children].forEach((column, call) => column.classList.toggle("done", call < done));
}

// --- drawing ----------------------------------------------------------------------------------------------------------

function showProblem(message) {
  at("problem").textContent = message;
  at("problem").hidden = !message;
}

function showPicture(data, alt) {
  const picture = at("picture");
  picture.onload = () => picture.classList.toggle("small", picture.naturalWidth < PIXELATED_BELOW);
  picture.src = `data:image/png;base64,${data}`;
  picture.alt = alt;
  picture.hidden = false;
  at("empty").hidden = true;
}

const subject = () => (about.takes === "class" ? at("class").selectedOptions[0].textContent : at("prompt").value);

function keep(event, name) {
  const href = `data:image/png;base64,${event.b64_json}`;
  const file = `${name.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 40)}-seed${event.seed}.png`;
  Object.assign(at("download"), { href, download: file, hidden: false });
  const image = element("img", { src: href, alt: "", className: at("picture").naturalWidth < PIXELATED_BELOW ? "small" : "" });
  const rule = event.segue.guidance.split(":")[0];
  at("pictures").prepend(element("li", {}, element("a", { href, download: file }, image, `${name}, ${rule}, seed ${event.seed}`)));
  while (at("pictures").children.length > PICTURES_KEPT) at("pictures").lastChild.remove();
  at("gallery").hidden = false;
}

async function draw() {
  const name = subject();
  const began = performance.now();
  current = new AbortController();
  at("draw").textContent = "Stop";
  at("download").hidden = true;
  showProblem("");
  at("caption").textContent = name;
  at("status").textContent = "Waiting for a slot";
  try {
    drawPlan(await (await ask("v1/images/plans", planFields(), current.signal)).json());
    const fields = { ...requestFields(), stream: true, partial_images: PREVIEWS, progress: true };
    for await (const event of events(await ask("v1/images/generations", bodyText(fields), current.signal))) {
      if (event.error) throw new Refused(event.error.message);
      if (event.type === "segue.progress") {
        showCalls(event.call);
        at("status").textContent = `Call ${event.call} of ${event.calls}, noise level ${event.sigma.toFixed(2)}`;
      } else if (event.type === "image_generation.partial_image") {
        showPicture(event.b64_json, `${name}, being drawn`);
      } else if (event.type === "image_generation.completed") {
        showPicture(event.b64_json, `${name}, drawn by ${event.segue.guidance}`);
        await at("picture").decode();
        keep(event, name);
        const seconds = ((performance.now() - began) / 1000).toFixed(1);
        at("status").textContent = `Drawn in ${seconds} s by ${event.segue.guidance}, seed ${event.seed}`;
      }
    }
  } catch (error) {
    at("status").textContent = error.name === "AbortError" ? "Stopped" : "";
    if (error.name !== "AbortError") showProblem(error instanceof Refused ? error.message : "the server cannot be reached");
  } finally {
    current = null;
    at("draw").textContent = "Draw";
    if (changed) showPlan();
  }
}

// --- the beginning ------------------------------------------------------------------------------------------------------

async function begin() {
  try {
    const models = await (await ask("v1/models")).json();
    about = models.data[0].segue;
    at("model").textContent = `${models.data[0].id}, ${about.size.replace("x", " × ")} pixels`;
  } catch (error) {
    showProblem(error.message);
    return;
  }
  at("class-field").hidden = about.takes !== "class";
  at("prompt-fields").hidden = about.takes === "class";
  at("class").replaceChildren();
  at("rule").replaceChildren();
  offerClasses(about.classes);
  offerRules(about.rules, about.guidance);
  Object.assign(at("steps"), { max: about.max_steps, value: about.steps });
  at("draw").disabled = false;
  await showPlan();
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (current) current.abort();
  else if (about) draw();
  else begin();
});
at("key").addEventListener("change", () => about || begin());
at("form").addEventListener("change", (event) => event.target.id !== "key" && about && showPlan());
at("form").addEventListener("input", () => about && showCurl());
begin();
