import { Student } from "./student.js";

const element = (id) => document.getElementById(id);
const said = element("said");

const attempt = async (action) => {
  element("ask").disabled = true;
  try {
    await action();
  } catch (error) {
    said.textContent = error.message;
  }
  element("ask").disabled = !student;
};

let student;
attempt(async () => {
  student = await Student.open("student");
  said.textContent = "The student is ready. Nothing that you type leaves this page.";
});

element("question-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    const choices = element("choices").value.split("\n").filter((line) => line.trim());
    const found = await student.answer(element("question").value, choices);
    show(choices.length ? choices : student.facts.choices, found);
  });
});

function show(choices, { answer, confidence, probabilities, abstain }) {
  const sure = `${Math.round(confidence * 100)} % sure`;
  said.textContent = abstain ? `It would rather not say: only ${sure}.` : `${answer}, ${sure}.`;
  element("answers").replaceChildren(
    ...choices.map((choice, i) => {
      const [term, bar, number] = ["dt", "meter", "span"].map((n) => document.createElement(n));
      term.textContent = choice.trim();
      Object.assign(bar, { value: probabilities[i], title: choice });
      Object.assign(number, { textContent: probabilities[i].toFixed(3) });
      const cell = document.createElement("dd");
      cell.append(bar, number);
      const row = document.createElement("div");
      row.append(term, cell);
      return row;
    }),
  );
}
