"""Survey: a Surveyor asks all Respondents, and uses the answers that arrive before the deadline.

    python3 examples/survey.py
"""

import gevent

from gmultisocket.protocol import Respondent, Surveyor

LOADS = {"north": 12, "east": 70, "south": 35, "west": None}


def make(name: str, load: int | None) -> Respondent:
    def answer(question: bytes) -> bytes | None:
        if name == "south":
            gevent.sleep(0.5)  # longer than the survey lasts
        # None sends no answer.
        return f"{name} {load}".encode() if load is not None else None

    return Respondent(answer)


def main() -> None:
    respondents = [make(name, load) for name, load in LOADS.items()]
    with Surveyor() as surveyor:
        address = surveyor.listen("tcp://127.0.0.1:0").address
        for respondent in respondents:
            respondent.dial(address)
            respondent.start()
        surveyor.wait_pipes(len(respondents), timeout=5)

        survey = surveyor.survey(b"how busy are you?", timeout=0.25)
        answers = sorted(reply.decode() for reply in survey)  # ends at the deadline
        print(f"{survey.sent} asked, {len(answers)} answered: {', '.join(answers)}")

        # One answer is enough here. Later answers are dropped and counted, like those after the deadline.
        quickest = next(surveyor.survey(b"who is there?", timeout=5))
        print("somebody is there:", quickest.decode().split()[0] in LOADS)

        gevent.sleep(1.5)
        print("answers that came too late:", surveyor.counters.drops["late"])
        for respondent in respondents:
            respondent.close()


if __name__ == "__main__":
    main()
