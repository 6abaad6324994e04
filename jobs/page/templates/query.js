// Queries such as: dog and not (person or "salt and pepper") and sky > 60 %

const WORDS = ["and", "or", "not"];

class QueryError extends Error {}

function startsWithName(text, name) {
  if (!name || text.slice(0, name.length).toLowerCase() !== name.toLowerCase()) return false;
  return !/[\p{L}\p{N}_]/u.test(text.charAt(name.length)) || !/[\p{L}\p{N}_]/u.test(name.at(-1));
}

// Splits a query into words, operators, numbers and classes. The longest class name counts.
function tokens(text) {
  const names = data.classes.map(({ name }, index) => [name, index]).sort(([one], [other]) => other.length - one.length);
  const found = [];
  let at = 0;
  while (true) {
    at += text.slice(at).match(/^\s*/)[0].length;
    const rest = text.slice(at);
    if (!rest) return found;
    const before = found.at(-1)?.kind;
    const sign = rest.match(/^(?:[()]|>=|<=|>|<)/);
    const number = before === "compare" && rest.match(/^(\d+\.?\d*|\.\d+)\s*(%?)/);
    const quoted = rest.match(/^"([^"]*)"/);
    const word = WORDS.find((candidate) => startsWithName(rest, candidate));
    const name = !["class", "number", "compare", ")"].includes(before) && names.find(([candidate]) => startsWithName(rest, candidate));
    let length;
    if (name && !(word?.length >= name[0].length)) {
      length = name[0].length;
      found.push({ kind: "class", index: name[1], text: name[0] });
    } else if (sign) {
      if (!"()".includes(sign[0]) && before !== "class") throw new QueryError(`Write a class before “${sign[0]}”.`);
      length = sign[0].length;
      found.push({ kind: "()".includes(sign[0]) ? sign[0] : "compare", text: sign[0] });
    } else if (number) {
      length = number[0].length;
      found.push({ kind: "number", value: Number(number[1]) / (number[2] ? 100 : 1), isPercent: number[2] === "%", text: number[0] });
    } else if (word) {
      length = word.length;
      found.push({ kind: word, text: word });
    } else {
      const text = quoted ? quoted[1] : rest.split(/\s+(?:and|or|not)\b|[()<>]/i)[0].trim() || rest;
      const match = names.find(([candidate]) => candidate.toLowerCase() === text.toLowerCase());
      if (before === "compare") throw new QueryError(`Write a number after “${found.at(-1).text}”.`);
      if (["class", "number", ")"].includes(before)) throw new QueryError(`Write “and” or “or” before “${text}”.`);
      if (!match || !quoted) throw new QueryError(unknown(text));
      length = quoted[0].length;
      found.push({ kind: "class", index: match[1], text: quoted[0] });
    }
    at += length;
  }
}

function unknown(name) {
  const ranked = data.classes.map((entry) => [distance(name.toLowerCase(), entry.name.toLowerCase()), entry.name])
    .sort(([one], [other]) => one - other);
  const few = Math.min(name.length - 1, Math.max(2, name.length / 3));
  const close = ranked.filter(([edits]) => edits === ranked[0][0] && edits <= few).slice(0, 3).map(([, found]) => `“${found}”`);
  return `There is no class “${name}”${close.length ? `: did you mean ${close.join(" or ")}?` : "."}`;
}

// The number of letters to insert, delete or replace.
function distance(one, other) {
  let row = Array.from({ length: other.length + 1 }, (_, at) => at);
  for (let i = 1; i <= one.length; i++) {
    const next = [i];
    for (let j = 1; j <= other.length; j++)
      next.push(Math.min(next[j - 1] + 1, row[j] + 1, row[j - 1] + (one[i - 1] === other[j - 1] ? 0 : 1)));
    row = next;
  }
  return row.at(-1);
}

// A query as { holds: side => boolean, classes: those it names }. Throws QueryError with a sentence.
function parseQuery(text) {
  const left = tokens(text), classes = [];
  const take = (...kinds) => kinds.includes(left[0]?.kind) ? left.shift() : null;
  const joined = (kind, part, join) => () => {
    const parts = [part()];
    while (take(kind)) parts.push(part());
    return (side) => join(parts, (holds) => holds(side));
  };
  const all = joined("and", () => one(), (parts, test) => parts.every(test));
  const any = joined("or", all, (parts, test) => parts.some(test));

  function one() {
    if (take("not")) {
      const holds = one();
      return (side) => !holds(side);
    }
    if (take("(")) {
      const holds = any();
      if (!take(")")) throw new QueryError(left.length ? `Write “and” or “or” before “${left[0].text}”.` : "A parenthesis is not closed.");
      return holds;
    }
    const named = take("class");
    if (!named) throw new QueryError(left.length ? `Write a class before “${left[0].text}”.` : "A class is missing at the end.");
    classes.push(named.index);
    const compare = take("compare");
    return compare ? comparison(named.index, compare.text) : (side) => isPresent(side, named.index);
  }

  function comparison(index, operator) {
    const number = take("number");
    if (!number) throw new QueryError(`Write a number after “${operator}”.`);
    if (number.isPercent && !byProbability)
      throw new QueryError("There are no probabilities here: compare with a score, without %.");
    return (side) => {
      const value = (number.isPercent ? side.probabilities : side.scores).get(index);
      return { ">": value > number.value, "<": value < number.value, ">=": value >= number.value, "<=": value <= number.value }[operator];
    };
  }

  const holds = any();
  if (left.length) throw new QueryError(left[0].kind === ")" ? "A parenthesis is closed that was not opened." : `Write “and” or “or” before “${left[0].text}”.`);
  return { holds, classes };
}

// Continuations of a query: the classes that fit its last words.
function suggestions(text) {
  const starts = [0, ...[...text.matchAll(/\(\s*|\b(?:and|or|not)\s+/gi)].map((match) => match.index + match[0].length)];
  const names = data.classes.map(({ name }) => name.toLowerCase());
  const begun = (start) => text.slice(start).trimStart().toLowerCase();
  const start = starts.find((at) => begun(at) && names.some((name) => name.startsWith(begun(at)))) ?? starts.at(-1);
  const fitting = names.flatMap((name, index) => (name.includes(begun(start)) ? [index] : []))
    .sort((one, other) => names[other].startsWith(begun(start)) - names[one].startsWith(begun(start)));
  return fitting.slice(0, 30).map((index) => text.slice(0, start) + inQuery(index));
}

// A class as one writes it in a query.
function inQuery(index) {
  const { name } = data.classes[index];
  return WORDS.includes(name.toLowerCase()) ? `"${name}"` : name;
}
