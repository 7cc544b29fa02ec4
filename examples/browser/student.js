// An exported student in a browser: firstkd/exports/reader.py in JavaScript, for ONNX files.
//
//     const student = await Student.open("student");
//     await student.answer("Where does a fox live?", ["in a den", "in a hive"]);
import { Tokenizer } from "./node_modules/@huggingface/tokenizers/dist/tokenizers.min.mjs";
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.bundle.min.mjs";

const LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";

export class Student {
  constructor(facts, tokenizer, session) {
    Object.assign(this, { facts, tokenizer, session });
  }

  /** Open an exported folder; an Error says in one line what is missing or not as it was exported. */
  static async open(folder) {
    const facts = parsed(await bytes(`${folder}/firstkd.json`));
    const files = {};
    for (const [name, expected] of Object.entries(facts.sha256)) {
      files[name] = await bytes(`${folder}/${name}`);
      if ((await sha256(files[name])) !== expected) {
        throw new Error(`${folder}/${name} is not the file that was exported (SHA-256 differs)`);
      }
    }
    const session = await ort.InferenceSession.create(files[facts.file]);
    return new Student(facts, plainTokenizer(parsed(files["tokenizer.json"])), session);
  }

  /** Answer with one of the choices, each with its calibrated probability. */
  async answer(question, choices) {
    const listed = (choices?.length ? choices : (this.facts.choices ?? [])).map((c) => c.trim());
    if (listed.length < 2) throw new Error("a question needs two choices or more");
    const scores = await this.scores(...this.encode(question.trim(), listed));
    const probabilities = softmax(scores.map((score) => score / this.facts.temperature));
    const confidence = Math.max(...probabilities);
    const policy = this.facts.policy;
    const abstain = policy ? policy.threshold === null || confidence < policy.threshold : false;
    return { answer: listed[probabilities.indexOf(confidence)], confidence, probabilities, abstain };
  }

  /** Return the ids of the prompt and of each choice, as the student was trained with them. */
  encode(question, choices) {
    const { format, max_length } = this.facts.prompt;
    if (format === "chat") throw new Error("this student uses its chat template");
    let [answers, options] = [choices, ""];
    if (format === "letter") {
      if (choices.length > LETTERS.length) throw new Error("more choices than letters");
      answers = [...LETTERS.slice(0, choices.length)];
      options = choices.map((choice, i) => `${answers[i]}. ${choice}\n`).join("");
    }
    const prompt = `Question: ${question}\n${options}Answer:`;
    const all = answers.map((answer) => this.tokenizer.encode(`${prompt} ${answer}`, PLAIN));
    const end = new TextEncoder().encode(prompt).length;
    let shared = Math.min(...all.map(({ tokens }) => before(tokens, end)));
    const first = all[0].ids;
    const alike = ({ ids }) => first.slice(0, shared).every((id, i) => id === ids[i]);
    while (!all.every(alike)) shared -= 1;
    const responses = all.map(({ ids }) => ids.slice(shared));
    const start = this.facts.start_ids;
    const room = max_length - Math.max(...responses.map((ids) => ids.length)) - start.length;
    if (room <= 0) throw new Error("a choice is so long that it leaves no room for the question");
    return [[...start, ...first.slice(0, shared).slice(-room)], responses];
  }

  /** Return the mean log-probability of each response's tokens, in one pass behind the prompt. */
  async scores(prompt, responses) {
    const start = prompt.length;
    const row = { input_ids: [...prompt], position_ids: [...prompt.keys()], rows: [start - 1] };
    row.segments = prompt.map(() => -1);
    const places = responses.map((response, number) => {
      const [first, known] = [row.input_ids.length, row.rows.length];
      row.input_ids.push(...response);
      row.position_ids.push(...response.map((_, i) => start + i));
      row.segments.push(...response.map(() => number));
      row.rows.push(...response.slice(1).map((_, i) => first + i));
      return [0, ...response.slice(1).map((_, i) => known + i)];
    });
    const feeds = {};
    for (const [name, values] of Object.entries(row)) {
      const integers = BigInt64Array.from(values, BigInt);
      feeds[name] = new ort.Tensor("int64", integers, [values.length]);
    }
    const { logits } = await this.session.run(feeds);
    const [, vocabulary] = logits.dims;
    const rows = row.rows.map((_, i) => logSoftmaxOf(logits.data, i * vocabulary, vocabulary));
    return responses.map((response, number) => {
      const found = response.map((token, i) => rows[places[number][i]](token));
      return found.reduce((sum, each) => sum + each, 0) / found.length;
    });
  }
}

const PLAIN = { add_special_tokens: false };

/** A tokenizer to which "</s>" in a question is text: it does not know the control tokens. */
function plainTokenizer(description) {
  if (!JSON.stringify(description.pre_tokenizer).includes('"ByteLevel"')) {
    throw new Error("this page reads tokenizers of byte-level BPE, and this student has another");
  }
  const added_tokens = description.added_tokens.filter((token) => !token.special);
  return new Tokenizer({ ...description, added_tokens }, {});
}

/** How many first tokens lie before a byte: each of a token's characters stands for one. */
function before(tokens, end) {
  let [count, seen] = [0, 0];
  while (count < tokens.length && seen + tokens[count].length <= end) seen += tokens[count++].length;
  return count;
}

function logSoftmaxOf(logits, from, length) {
  let [largest, sum] = [-Infinity, 0];
  for (let i = from; i < from + length; i++) largest = Math.max(largest, logits[i]);
  for (let i = from; i < from + length; i++) sum += Math.exp(logits[i] - largest);
  return (token) => logits[from + token] - largest - Math.log(sum);
}

function softmax(values) {
  const largest = Math.max(...values);
  const weights = values.map((value) => Math.exp(value - largest));
  const sum = weights.reduce((total, weight) => total + weight, 0);
  return weights.map((weight) => weight / sum);
}

async function bytes(url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url} is missing`);
  return new Uint8Array(await response.arrayBuffer());
}

async function sha256(data) {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", data));
  return [...digest].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

const parsed = (data) => JSON.parse(new TextDecoder().decode(data));
