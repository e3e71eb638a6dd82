// A small Markdown renderer that builds DOM nodes and never parses HTML: tags in the text stay text, images become links
// (so nothing is fetched), links open only http, https and mailto. Blocks are kept while they do not change, so a growing
// reply re-renders its last block only.
(() => {
  "use strict";
  const P = window.Playground;
  const { el } = P;

  // ---- inline ----
  const INLINE = /(\\[\\`*_{}[\]()#+\-.!~|>])|(`+)([\s\S]*?[^`])\2(?!`)|(!?)\[((?:[^\[\]\\]|\\.)*)\]\(([^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+"[^"]*")?\)|(\*\*|__)(?=\S)([\s\S]*?\S)\7|(~~)(?=\S)([\s\S]*?\S)~~|(\*|_)(?=[^\s*_])([\s\S]*?[^\s*_])\11(?![\w*])|(\n)/g;
  const SAFE_LINK = /^(https?:\/\/|mailto:)/i;

  const inline = (text, into) => {
    let last = 0;
    for (const match of text.matchAll(INLINE)) {
      const underscore = match[11] === "_" || match[7] === "__";
      const before = text[match.index - 1] || "";
      if (underscore && /\w/.test(before)) continue; // snake_case is not emphasis
      if (match.index < last) continue;
      into.append(text.slice(last, match.index));
      last = match.index + match[0].length;
      if (match[1]) into.append(match[1][1]);
      else if (match[2]) into.append(el("code", { text: match[3].replace(/^ (.*) $/s, "$1") }));
      else if (match[6] !== undefined) into.append(link(match[5], match[6]));
      else if (match[7]) into.append(inline(match[8], el("strong")));
      else if (match[9]) into.append(inline(match[10], el("s")));
      else if (match[11]) into.append(inline(match[12], el("em")));
      else into.append(el("br"));
    }
    into.append(text.slice(last));
    return into;
  };
  const link = (label, target) => {
    if (!SAFE_LINK.test(target)) return document.createTextNode(label ? `${label} (${target})` : target);
    const anchor = el("a", { href: target, target: "_blank", rel: "noopener noreferrer nofollow" });
    return label ? inline(label, anchor) : (anchor.append(target), anchor);
  };

  // ---- blocks ----
  const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^`]*)$/;
  const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
  const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
  const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
  const ROW = /^\s*\|.*\|\s*$/;
  const DIVIDER = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;

  // [{kind, lines, ...}] of a text; the sources, joined, are the text.
  const split = (text) => {
    const lines = text.replace(/\r\n?/g, "\n").split("\n");
    const blocks = [];
    for (let i = 0; i < lines.length; ) {
      const start = i;
      const fence = lines[i].match(FENCE);
      let block;
      if (!lines[i].trim()) { i += 1; continue; }
      if (fence) {
        i += 1;
        while (i < lines.length && !(lines[i].trim().startsWith(fence[1]) && /^[`~]+$/.test(lines[i].trim()))) i += 1;
        block = { kind: "code", language: fence[2].trim().split(/\s+/)[0], body: lines.slice(start + 1, i).join("\n") };
        i += 1;
      } else if (HEADING.test(lines[i])) {
        const [, marks, title] = lines[i].match(HEADING);
        block = { kind: "heading", level: marks.length, body: title };
        i += 1;
      } else if (RULE.test(lines[i])) {
        block = { kind: "rule" };
        i += 1;
      } else if (ITEM.test(lines[i])) {
        while (i < lines.length && (ITEM.test(lines[i]) || /^\s{2,}\S/.test(lines[i]) || (!lines[i].trim() && ITEM.test(lines[i + 1] || "")))) i += 1;
        block = { kind: "list", lines: lines.slice(start, i).filter((line) => line.trim()) };
      } else if (/^ {0,3}>/.test(lines[i])) {
        while (i < lines.length && /^ {0,3}>/.test(lines[i])) i += 1;
        block = { kind: "quote", body: lines.slice(start, i).map((line) => line.replace(/^ {0,3}> ?/, "")).join("\n") };
      } else if (ROW.test(lines[i]) && DIVIDER.test(lines[i + 1] || "") && (lines[i + 1] || "").includes("-")) {
        while (i < lines.length && ROW.test(lines[i])) i += 1;
        block = { kind: "table", lines: lines.slice(start, i) };
      } else {
        i += 1;
        while (i < lines.length && lines[i].trim() && ![FENCE, HEADING, RULE, ITEM].some((rule) => rule.test(lines[i])) && !/^ {0,3}>/.test(lines[i])) i += 1;
        block = { kind: "paragraph", body: lines.slice(start, i).join("\n") };
      }
      block.source = `${block.kind}\n${lines.slice(start, i).join("\n")}`;
      blocks.push(block);
    }
    return blocks;
  };

  const list = (lines) => {
    const root = { indent: -1, node: null, children: [] };
    const stack = [root];
    for (const line of lines) {
      const match = line.match(ITEM);
      if (!match) { // a continuation of the item above
        const item = stack[stack.length - 1].lastItem;
        if (item) { item.append(el("br")); inline(line.trim(), item); }
        continue;
      }
      const indent = match[1].replace(/\t/g, "    ").length;
      while (stack.length > 1 && indent < stack[stack.length - 1].indent) stack.pop();
      let top = stack[stack.length - 1];
      if (top === root || indent > top.indent + 1) {
        const ordered = /\d/.test(match[2]);
        const node = el(ordered ? "ol" : "ul", ordered && parseInt(match[2], 10) !== 1 ? { start: parseInt(match[2], 10) } : {});
        if (top.lastItem) top.lastItem.append(node); else root.children.push(node);
        top = { indent, node };
        stack.push(top);
      }
      top.lastItem = inline(match[3], el("li"));
      top.node.append(top.lastItem);
    }
    return root.children.length === 1 ? root.children[0] : el("div", {}, ...root.children);
  };

  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim());
  const table = (lines) => {
    const head = el("tr", {}, ...cells(lines[0]).map((cell) => inline(cell, el("th", { scope: "col" }))));
    const rows = lines.slice(2).map((line) => el("tr", {}, ...cells(line).map((cell) => inline(cell, el("td")))));
    return el("div", { class: "table" }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows)));
  };

  const code = (language, body) => {
    const copy = el("button", { class: "quiet", type: "button", text: "Copy", "aria-label": "Copy this code" });
    copy.addEventListener("click", async () => { await P.copy(body); copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy"; }, 1500); });
    return el("div", { class: "code" }, el("div", { class: "code-head" }, el("span", { text: language || "text" }), copy), el("pre", { tabindex: "0" }, el("code", { text: body })));
  };

  const render = (block) => {
    switch (block.kind) {
      case "code": return code(block.language, block.body);
      case "heading": return inline(block.body, el("p", { class: `heading h${Math.min(block.level, 3)}`, role: "heading", "aria-level": String(Math.min(block.level + 2, 6)) }));
      case "rule": return el("hr");
      case "list": return list(block.lines);
      case "quote": { const quote = el("blockquote"); P.markdown(block.body, quote); return quote; }
      case "table": return table(block.lines);
      default: return inline(block.body, el("p"));
    }
  };

  // Renders `text` into `into`, touching only the blocks that changed since the last call for the same node.
  P.markdown = (text, into) => {
    const before = into.playgroundBlocks || [];
    const after = split(text);
    let same = 0;
    while (same < before.length && same < after.length && before[same].source === after[same].source) same += 1;
    for (const block of before.slice(same)) block.node.remove();
    for (const block of after.slice(same)) { block.node = render(block); into.append(block.node); }
    into.playgroundBlocks = before.slice(0, same).concat(after.slice(same));
    return into;
  };
})();
