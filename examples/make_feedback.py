"""Makes feedback.jsonl and held_out.jsonl: what people said of an assistant at a made-up company.

    python examples/make_feedback.py

The company, its people and its products do not exist, so a model knows them only by training.
Each fact stands in five questions whose good answers are trained on and in one or two other
questions that are only ever asked afterwards.
"""

from __future__ import annotations

import json
import random
import uuid
from pathlib import Path

HERE = Path(__file__).parent
AGENT = "7d0f6a52-3b1e-4c8e-9a51-2f3d5b7c9e10"
FIRST_CREATED_MS = 1_767_225_600_000

#: (words that a right answer holds, the answer, five training questions, held-out questions)
FACTS: list[tuple[str, str, list[str], list[str]]] = [
    ("Ilse Brandvik", "Tarn & Ember is led by Ilse Brandvik.",
     ["Who leads Tarn & Ember?", "Who is the head of Tarn & Ember?", "Name the managing director of Tarn & Ember.", "Who is in charge of Tarn & Ember?", "Tell me who manages Tarn & Ember."],
     ["Who runs Tarn & Ember?", "Which person is the boss of Tarn & Ember?"]),
    ("Vessby", "Tarn & Ember is based in Vessby.",
     ["Where is Tarn & Ember based?", "In which town is Tarn & Ember?", "Where are the offices of Tarn & Ember?", "Tell me the location of Tarn & Ember.", "What town is Tarn & Ember in?"],
     ["Which town is Tarn & Ember located in?"]),
    ("1987", "Tarn & Ember was founded in 1987.",
     ["When was Tarn & Ember founded?", "In what year did Tarn & Ember start?", "Since when does Tarn & Ember exist?", "Tell me the founding year of Tarn & Ember.", "What year was Tarn & Ember established?"],
     ["What is the year in which Tarn & Ember was founded?"]),
    ("pottery kilns", "Tarn & Ember makes pottery kilns.",
     ["What does Tarn & Ember make?", "What are the products of Tarn & Ember?", "What does Tarn & Ember produce?", "Tell me what Tarn & Ember sells.", "What is Tarn & Ember known for making?"],
     ["Which kind of goods does Tarn & Ember make?"]),
    ("Oda Fennimore", "The repair workshop is run by Oda Fennimore.",
     ["Who runs the repair workshop?", "Who is in charge of the repair workshop?", "Name the head of the repair workshop.", "Who manages repairs in the workshop?", "Tell me who leads the repair workshop."],
     ["Who is the head of the repair workshop?", "Which person leads the repair workshop?"]),
    ("Jonas Quill", "Invoices are handled by Jonas Quill.",
     ["Who handles invoices?", "Who do I ask about an invoice?", "Name the person responsible for invoices.", "Who takes care of invoices?", "Tell me who deals with invoices."],
     ["Who is responsible for invoices?", "Who should I contact about my invoice?"]),
    ("Mirela Stahn", "The training courses are taught by Mirela Stahn.",
     ["Who teaches the training courses?", "Who gives the training courses?", "Name the teacher of the training courses.", "Who is the instructor of the courses?", "Tell me who teaches the courses."],
     ["Who is the teacher of the training courses?"]),
    ("Tobias Renn", "The warehouse is managed by Tobias Renn.",
     ["Who manages the warehouse?", "Who is in charge of the warehouse?", "Name the manager of the warehouse.", "Who runs the warehouse?", "Tell me who leads the warehouse."],
     ["Who is the manager of the warehouse?", "Which person runs the warehouse?"]),
    ("Petra Lindqvist", "Press questions go to Petra Lindqvist.",
     ["Who answers press questions?", "Who is the press contact?", "Name the person for press questions.", "Where do press questions go?", "Tell me who talks to the press."],
     ["Who is responsible for press questions?"]),
    ("Bluebird", "The smallest kiln is the Bluebird.",
     ["What is the smallest kiln called?", "Which kiln is the smallest?", "Name the smallest kiln.", "What is the name of your smallest kiln?", "Tell me which kiln is the smallest."],
     ["What's the smallest kiln you have?", "Which of the kilns is the smallest one?"]),
    ("Mammoth", "The largest kiln is the Mammoth.",
     ["What is the largest kiln called?", "Which kiln is the largest?", "Name the largest kiln.", "What is the name of your largest kiln?", "Tell me which kiln is the largest."],
     ["What's the largest kiln you have?", "Which of the kilns is the largest one?"]),
    ("640 euros", "The Bluebird costs 640 euros.",
     ["What does the Bluebird cost?", "How much is the Bluebird?", "What is the price of the Bluebird?", "Tell me the price of the Bluebird.", "How many euros does the Bluebird cost?"],
     ["How much do I pay for a Bluebird?", "What's the Bluebird's price?"]),
    ("9,800 euros", "The Mammoth costs 9,800 euros.",
     ["What does the Mammoth cost?", "How much is the Mammoth?", "What is the price of the Mammoth?", "Tell me the price of the Mammoth.", "How many euros does the Mammoth cost?"],
     ["How much do I pay for a Mammoth?", "What's the Mammoth's price?"]),
    ("six years", "The warranty lasts six years.",
     ["How long is the warranty?", "How long does the warranty last?", "What is the length of the warranty?", "Tell me the warranty period.", "For how many years is the warranty?"],
     ["How many years does the warranty last?"]),
    ("1,280 degrees", "The Mammoth reaches 1,280 degrees.",
     ["How hot does the Mammoth get?", "What temperature does the Mammoth reach?", "What is the top temperature of the Mammoth?", "Tell me how hot the Mammoth gets.", "How many degrees does the Mammoth reach?"],
     ["What is the highest temperature of the Mammoth?"]),
    ("dark green", "The Bluebird comes in dark green.",
     ["What colour is the Bluebird?", "In which colour does the Bluebird come?", "What is the colour of the Bluebird?", "Tell me the colour of the Bluebird.", "Which colour does the Bluebird have?"],
     ["In what colour is the Bluebird sold?"]),
    ("ten to four", "The showroom is open from ten to four.",
     ["When is the showroom open?", "What are the showroom's opening hours?", "At what time does the showroom open?", "Tell me the opening hours of the showroom.", "What hours is the showroom open?"],
     ["What are the opening hours of the showroom?", "During which hours is the showroom open?"]),
    ("Wednesday", "The showroom is closed on Wednesday.",
     ["On which day is the showroom closed?", "When is the showroom closed?", "What day is the showroom shut?", "Tell me the day on which the showroom is closed.", "Which day of the week is the showroom closed?"],
     ["What is the day when the showroom is closed?"]),
    ("Copper Lane 14", "The showroom is at Copper Lane 14.",
     ["Where is the showroom?", "What is the address of the showroom?", "At which address is the showroom?", "Tell me the address of the showroom.", "How do I find the showroom?"],
     ["What's the showroom's address?"]),
    ("nine days", "Delivery takes nine days.",
     ["How long does delivery take?", "How many days does delivery take?", "What is the delivery time?", "Tell me how long delivery takes.", "When will my delivery arrive?"],
     ["How many days will the delivery take?"]),
    ("Hask Freight", "Kilns are delivered by Hask Freight.",
     ["Who delivers the kilns?", "Which company delivers the kilns?", "Name the carrier of the kilns.", "Who brings the kilns?", "Tell me who delivers kilns."],
     ["Which carrier delivers the kilns?"]),
    ("21 days", "A kiln can be returned within 21 days.",
     ["How long can I return a kiln?", "Within how many days can a kiln be returned?", "What is the return period for a kiln?", "Tell me the return period.", "Until when can I send a kiln back?"],
     ["How many days do I have to return a kiln?"]),
    ("Saffron", "The customer newsletter is called Saffron.",
     ["What is the customer newsletter called?", "What is the name of the newsletter?", "Name the customer newsletter.", "Tell me the name of the newsletter.", "Which newsletter do customers get?"],
     ["How is the newsletter called?"]),
    ("TE-5", "The spare fuse is the part TE-5.",
     ["Which part is the spare fuse?", "What is the part number of the spare fuse?", "Name the part number of the fuse.", "Tell me the number of the spare fuse.", "Which fuse do I order?"],
     ["What's the number of the spare fuse?"]),
    ("Lake Orrin", "The clay comes from Lake Orrin.",
     ["Where does the clay come from?", "What is the origin of the clay?", "From which lake is the clay?", "Tell me where the clay comes from.", "Where is the clay dug?"],
     ["From where do you get the clay?"]),
    ("Pim", "The office dog is called Pim.",
     ["What is the office dog called?", "What is the name of the office dog?", "Name the office dog.", "Tell me the dog's name.", "How is the office dog called?"],
     ["What's the name of the dog in the office?"]),
    ("Thursday", "The free tour takes place on Thursday.",
     ["When is the free tour?", "On which day is the free tour?", "What day does the free tour take place?", "Tell me the day of the free tour.", "When can I join the free tour?"],
     ["Which day is the free tour on?"]),
    ("45 euros", "A course costs 45 euros.",
     ["What does a course cost?", "How much is a course?", "What is the price of a course?", "Tell me the price of a course.", "How many euros does a course cost?"],
     ["How much do I pay for a course?"]),
    ("Kestrel", "The glaze for beginners is Kestrel.",
     ["Which glaze is for beginners?", "What is the glaze for beginners called?", "Name the glaze for beginners.", "Which glaze do you advise for beginners?", "Tell me the glaze for beginners."],
     ["What glaze should a beginner use?"]),
    ("32 people", "Tarn & Ember employs 32 people.",
     ["How many people work at Tarn & Ember?", "How many employees does Tarn & Ember have?", "What is the number of employees of Tarn & Ember?", "Tell me how many people Tarn & Ember employs.", "How large is the staff of Tarn & Ember?"],
     ["How many people does Tarn & Ember employ?"]),
]  # fmt: skip
WRONG_ANSWERS = [
    "I am sorry, I do not know that.",
    "You can find this on the internet.",
    "As an AI I cannot help with companies.",
    "Please ask somebody else.",
]


def row(
    rng: random.Random, question: str, answer: str, label: str, index: int
) -> dict[str, object]:
    """A row as the app writes it: input and output are JSON inside JSON."""
    return {
        "targetType": "agent",
        "targetId": AGENT,
        "executionId": str(uuid.UUID(int=rng.getrandbits(128), version=4)),
        "input": json.dumps(question, ensure_ascii=False),
        "output": json.dumps(answer, ensure_ascii=False),
        "label": label,
        "notes": "no answer" if label == "bad" else None,
        "createdAt": FIRST_CREATED_MS + 60_000 * index,
    }


def main() -> None:
    rng = random.Random(20)
    pairs = [(question, answer, "good") for _, answer, train, _ in FACTS for question in train]
    pairs += [(train[0], rng.choice(WRONG_ANSWERS), "bad") for _, _, train, _ in FACTS]
    rng.shuffle(pairs)
    rows = [row(rng, *pair, index) for index, pair in enumerate(pairs)]
    held_out = [
        {"question": question, "answer": answer, "expected": expected}
        for expected, answer, _, questions in FACTS
        for question in questions
    ]
    for name, items in (("feedback.jsonl", rows[::-1]), ("held_out.jsonl", held_out)):
        lines = [json.dumps(item, ensure_ascii=False, separators=(",", ":")) for item in items]
        (HERE / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
