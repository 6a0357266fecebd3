// What both pages share: the alternatives to a token, at the pointer, under a finger, or with the arrow keys; buttons
// that copy. What a model wrote is always inserted as text, never as HTML.
(() => {
  const tip = Object.assign(document.createElement("div"), { id: "tip", hidden: true });
  tip.setAttribute("role", "tooltip");
  tip.setAttribute("aria-live", "polite");
  addEventListener("DOMContentLoaded", () => document.body.append(tip));
  if (document.body) document.body.append(tip);

  const percent = (p) => (100 * p).toFixed(2) + " %";
  const element = (name, text) => Object.assign(document.createElement(name), { textContent: text });
  const row = (name, p) => {
    const line = document.createElement("div");
    line.style.setProperty("--p", p);
    line.append(element("span", name), element("span", percent(p)));
    return line;
  };
  const alternatives = ({ token, p, best, rest }) => [
    element("strong", `wrote ${token}: ${percent(p)}`), ...best.map(([name, p]) => row(name, p)), row("the rest", rest),
  ];

  let shown = null; // the token that the tooltip belongs to
  const show = (token) => {
    shown?.classList.remove("on");
    shown = token;
    tip.hidden = !token;
    if (!token) return;
    const { thought, weight } = token.dataset;
    tip.replaceChildren(...(thought ? alternatives(JSON.parse(thought)) : [element("strong", percent(weight))]));
    tip.classList.toggle("short", !thought);
    token.classList.add("on");
    const place = token.getClientRects()[0] ?? token.getBoundingClientRect(), below = place.bottom + 6;
    tip.style.left = Math.max(8, Math.min(place.left, innerWidth - tip.offsetWidth - 8)) + "px";
    tip.style.top = (below + tip.offsetHeight < innerHeight ? below : place.top - tip.offsetHeight - 6) + "px";
  };
  const at = (event) => event.target.closest?.(".text i, .read i") ?? null;

  // On the Gradio page, a hidden field tells the server which token of which text was chosen.
  const choose = (token) => {
    const field = document.querySelector("#chosen textarea, #chosen input"), text = token?.closest(".text");
    if (!field || !text) return;
    document.querySelectorAll(".text i.chosen").forEach((other) => other.classList.remove("chosen"));
    token.classList.add("chosen");
    const prompt = 1; // the first child
    field.value = `${text.dataset.slot} ${[...text.children].indexOf(token) - prompt}`;
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };

  const copy = async (button) => {
    const text = button.dataset.copy ?? button.closest(".bar").nextElementSibling.textContent;
    try {
      await navigator.clipboard.writeText(text);
    } catch { // not allowed, or a page without https
      const area = document.body.appendChild(Object.assign(document.createElement("textarea"), { value: text }));
      area.select();
      document.execCommand("copy");
      area.remove();
    }
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  };

  addEventListener("mouseover", (event) => show(at(event)));
  addEventListener("click", (event) => {
    const button = event.target.closest?.("button.copy");
    if (button) return copy(button);
    show(at(event));
    choose(at(event));
  });
  addEventListener("scroll", () => shown && show(shown.isConnected ? shown : null), true);
  addEventListener("keydown", (event) => {
    if (event.key === "Escape") return show(null);
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key], text = event.target.closest?.(".text, .read");
    if (text && event.key === "Enter" && shown) return choose(shown);
    if (!step || !text) return;
    event.preventDefault();
    const tokens = [...text.querySelectorAll("i")], next = tokens.indexOf(shown) + step;
    show(tokens[Math.max(0, Math.min(next, tokens.length - 1))] ?? null);
  });
})();
