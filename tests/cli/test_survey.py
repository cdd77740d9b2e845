from __future__ import annotations

from pathlib import Path

from gmultisocket import Respondent, Socket
from tests.cli.command import address_of, end, run, start


def test_all_answers_are_printed(tmp_path: Path) -> None:
    with start("survey", "-l", f"ipc://{tmp_path}/poll", "--peers", "3", "--json", "count") as survey:
        address = address_of(survey)
        with Respondent(lambda content: content.upper()) as one, Respondent(lambda content: b"\xff") as other:
            for respondent in (one, other):
                respondent.start()
                respondent.dial(address)
            with start("respond", "-d", address, "-n", "1", "three") as third:
                out, _ = end(survey)
                assert end(third)[0] == "count\n"
    assert sorted(out.splitlines()) == ['{"content": "COUNT"}', '{"content": "three"}', '{"content_base64": "/w=="}']


def test_a_survey_without_an_answer_fails(tmp_path: Path) -> None:
    with Socket() as sock:
        address = sock.listen(f"ipc://{tmp_path}/poll").address
        out, err = run("survey", "-d", address, "-t", "0.1", "hello?", status=1)
    assert out == "" and "no answer within 0.1 s: are the 1 peers Respondents?" in err
