"""Asking a judge over HTTP, from a server that misbehaves in every way we know of."""

from __future__ import annotations

import threading
import time

import pytest
from judge_server import FAULTS, JudgeServer, at_random, error
from processes import wait_until

from reinforge.config import JudgeConfig
from reinforge.errors import ConfigError, SetupError
from reinforge.grading.judges.client import JudgeClient, Question
from reinforge.grading.judges.gate import Patience
from reinforge.grading.judges.reply import number_of

QUICK = Patience(first_backoff_s=0.01, max_backoff_s=0.05, probe_s=0.02, max_probe_s=0.05)


@pytest.fixture
def make_client():
    clients = []

    def make(server, patience=QUICK, **config) -> JudgeClient:
        values = {"base_url": server.url, "allow_private_addresses": True, "timeout_s": 5.0, **config}
        clients.append(JudgeClient(JudgeConfig(**values), patience=patience))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


def question(text="How good?", **changes) -> Question:
    messages = ({"role": "user", "content": text},)
    return Question("judge", messages, {"type": "object"}, lambda reply: number_of(reply, "result"), **changes)


def ask(client, *texts):
    return [future.result(30) for future in [client.ask(question(text)) for text in texts]]


def test_an_answer_and_what_was_sent(make_client, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-key-1234")
    with JudgeServer(lambda body: {"result": 0.25}) as server:
        client = make_client(server, api_key_env="JUDGE_KEY")
        answer = client.ask(question(settings={"temperature": 0, "seed": 1})).result(10)
        assert (answer.value, answer.kind, answer.cached) == (0.25, "", False)
        (sent,) = server.requests
        assert sent["messages"] == [{"role": "user", "content": "How good?"}]
        assert (sent["model"], sent["temperature"], sent["seed"]) == ("judge", 0, 1)
        assert sent["response_format"]["json_schema"]["strict"] is True
        assert server.headers[0]["authorization"] == "Bearer secret-key-1234"
        assert client.take_figures() == {"calls": 1, "questions": 1, "prompt_tokens": 100, "completion_tokens": 10}
        assert client.take_figures() == {}


def test_without_a_key_none_is_sent(make_client, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-you")
    with JudgeServer() as server:
        ask(make_client(server), "a")
        assert "authorization" not in {name.lower() for name in server.headers[0]}


PASSING = ["429", "429 zero", "500", "503", "503 zero", "html", "wrong type", "broken json", "wrong shape", "no object"]
PASSING += ["deep", "reset", "cut"]


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_changes_no_answer(make_client, fault):
    with JudgeServer(fault=lambda body, attempt: fault if attempt < 2 else "") as server:
        client = make_client(server)
        (answer,) = ask(client, "a")
        assert (answer.value, answer.kind) == (0.5, "")
        figures = client.take_figures()
        assert (figures["calls"], figures["retries"]) == (3, 2)


@pytest.mark.parametrize("fault", ["hang", "drip"])
def test_an_endpoint_that_never_ends_is_left_at_the_deadline(make_client, fault):
    with JudgeServer(fault=lambda body, attempt: fault if attempt == 0 else "") as server:
        started = time.monotonic()
        (answer,) = ask(make_client(server, timeout_s=0.5), "a")
        assert answer.value == 0.5
        assert 0.5 <= time.monotonic() - started < 4


@pytest.mark.parametrize(
    ("fault", "kind", "calls", "words"),
    [
        ("500", "model_grader_server_error", 3, "500 oops"),
        ("reset", "model_grader_server_error", 3, ""),
        ("refusal", "model_grader_refusal_error", 1, "I can't help with that."),
        ("filter", "model_grader_refusal_error", 1, "content filter"),
        ("prose", "model_grader_parse_error", 2, "not one JSON object"),
        ("cut off", "model_grader_parse_error", 2, "cut off after 10 tokens"),
        ("flood", "model_grader_server_error", 1, "more than 4,194,304 bytes"),
    ],
)
def test_a_fault_that_stays_is_named_and_never_a_value(make_client, fault, kind, calls, words):
    with JudgeServer(fault=lambda body, attempt: fault) as server:
        (answer,) = ask(make_client(server, max_retries=2), "a")
        assert (answer.value, answer.kind) == (None, kind)
        assert words in answer.message
        assert len(server.requests) == calls


def test_a_bad_request_is_not_repeated_once_the_endpoint_has_answered(make_client):
    with JudgeServer(fault=lambda body, attempt: "400" if "long" in body["messages"][0]["content"] else "") as server:
        client = make_client(server)
        assert ask(client, "short")[0].value == 0.5
        (answer,) = ask(client, "long")
        assert (answer.kind, len(server.requests)) == ("model_grader_server_error", 2)
        assert "too long" in answer.message


@pytest.mark.parametrize("fault", ["401", "404", "429 quota", "redirect"])
def test_an_endpoint_that_turns_us_away_is_asked_no_more(make_client, fault, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret-key-1234")
    with JudgeServer(fault=lambda body, attempt: fault) as server:
        answers = ask(make_client(server, concurrency=1, api_key_env="JUDGE_KEY"), *map(str, range(20)))
        assert {answer.kind for answer in answers} == {"judge_unusable"}
        assert len(server.requests) == 1
        assert not any("secret" in answer.message for answer in answers)


def test_the_repair_try_shows_the_judge_its_reply(make_client):
    def answer(body):
        return {"result": 0.75} if len(body["messages"]) == 3 else {"result": "0.75"}

    with JudgeServer(answer) as server:
        client = make_client(server)
        assert ask(client, "a")[0].value == 0.75
        assert client.take_figures()["repairs"] == 1
        _, shown, told = server.requests[1]["messages"]
        assert shown == {"role": "assistant", "content": '{"result": "0.75"}'}
        assert told["role"] == "user"
        assert "\"result\" is the text '0.75', not a number" in told["content"]


def test_what_an_endpoint_does_not_take_is_left_out_from_then_on(make_client):
    def fault(body, attempt):
        if body.get("response_format", {}).get("type") == "json_schema" or "temperature" in body:
            return "no schema" if "response_format" in body else "no temperature"
        return ""

    FAULTS["no schema"] = lambda h: h.send(400, error("response_format.type json_schema is unavailable"))
    FAULTS["no temperature"] = lambda h: h.send(400, error("Unsupported value: temperature"))
    with JudgeServer(fault=fault) as server:
        client = make_client(server, concurrency=1, max_retries=0)
        asked = [question(text, settings={"temperature": 0, "max_completion_tokens": 9}) for text in "ab"]
        assert [client.ask(one).result(10).value for one in asked] == [0.5, 0.5]
        assert server.requests[-1].keys() == {"model", "messages", "max_completion_tokens"}
        assert sum(request["messages"][0]["content"] == "b" for request in server.requests) == 1


def quoting(word: str):
    """The fault of a server that does not take long prompts and shows their beginning, as many servers do."""
    return lambda h: h.send(400, error(f"input too long: 'my essay about the {word} of the sea...'"))


WORDS = ("temperature", "schema", "seed", "top_p", "response_format")


@pytest.mark.parametrize("asked_before", [True, False])
def test_what_an_error_quotes_of_a_completion_changes_no_request(make_client, monkeypatch, asked_before):
    for word in WORDS:
        monkeypatch.setitem(FAULTS, f"too long: {word}", quoting(word))

    def fault(body, attempt):
        return next((f"too long: {word}" for word in WORDS if word in body["messages"][0]["content"]), "")

    with JudgeServer(fault=fault) as server:
        client = make_client(server, concurrency=1, max_retries=0)
        given = {"temperature": 0, "seed": 1, "top_p": 0.5}
        if asked_before:
            assert client.ask(question("short", settings=given)).result(10).value == 0.5
        for word in WORDS:
            long = question(f"Judge: my essay about the {word} of the sea and so on", settings=given)
            assert "too long" in client.ask(long).result(10).message
        assert client.ask(question("last", settings=given)).result(10).value == 0.5
        assert server.requests[-1].keys() - {"response_format"} == {"model", "messages", *given}
        if asked_before:
            assert len(server.requests) == 2 + len(WORDS)
            assert server.requests[-1]["response_format"]["type"] == "json_schema"


@pytest.mark.parametrize("message", ["Unsupported value: temperature", "temperature of the sea"])
def test_what_an_endpoint_has_taken_is_sent_for_ever(make_client, monkeypatch, message):
    monkeypatch.setitem(FAULTS, "temperature", lambda h: h.send(400, error(message, param="temperature")))
    with JudgeServer(fault=lambda body, attempt: "temperature" if len(server.requests) == 2 else "") as server:
        client = make_client(server, concurrency=1, max_retries=0)
        asked = [question(text, settings={"temperature": 0}) for text in "abc"]
        assert [client.ask(one).result(10).value for one in asked] == [0.5, None, 0.5]
        assert [request.get("temperature") for request in server.requests] == [0, 0, 0]


def test_of_two_values_the_one_that_is_not_taken_is_left_out(make_client, monkeypatch):
    monkeypatch.setitem(FAULTS, "only 1", lambda h: h.send(400, error("Only 1 is supported", param="temperature")))
    with JudgeServer(fault=lambda body, attempt: "only 1" if body.get("temperature", 1) != 1 else "") as server:
        client = make_client(server, concurrency=1, max_retries=0)
        for text, temperature in zip("abcd", (1, 0, 1, 0), strict=True):
            assert client.ask(question(text, settings={"temperature": temperature})).result(10).value == 0.5
        assert [request.get("temperature") for request in server.requests] == [1, 0, None, 1, None]


@pytest.mark.parametrize("proven", [True, False])
@pytest.mark.parametrize("at_top", [True, False])
def test_the_parameter_an_error_names_is_believed_whatever_its_message_quotes(make_client, monkeypatch, at_top, proven):
    told = error("Unknown: my essay on temperature", param="seed")
    monkeypatch.setitem(FAULTS, "seed", lambda h: h.send(422, told["error"] if at_top else told))
    with JudgeServer(fault=lambda body, attempt: "seed" if "seed" in body else "") as server:
        client = make_client(server, concurrency=1, max_retries=0)
        if proven:
            ask(client, "a")
        assert client.ask(question("On seed", settings={"temperature": 0, "seed": 1})).result(10).value == 0.5
        assert server.requests[-1].keys() == {"model", "messages", "temperature", "response_format"}
        assert len(server.requests) == (3 if proven else 2)


def test_an_error_that_names_a_part_of_the_messages_changes_no_request(make_client, monkeypatch):
    monkeypatch.setitem(FAULTS, "long", lambda h: h.send(400, error("The schema is fine", param="messages[0].content")))
    with JudgeServer(fault=lambda body, attempt: "long" if attempt == 0 else "") as server:
        (answer,) = ask(make_client(server), "a")
        assert (answer.kind, len(server.requests)) == ("model_grader_server_error", 1)


@pytest.mark.parametrize("takes", ["json_object", None])
def test_the_form_of_a_reply_is_asked_for_in_the_strictest_way_that_is_taken(make_client, monkeypatch, takes):
    refusal = error("Invalid parameter", param="response_format")
    monkeypatch.setitem(FAULTS, "form", lambda h: h.send(400, refusal))

    def fault(body, attempt):
        return "form" if body.get("response_format", {}).get("type") not in (takes, None) else ""

    with JudgeServer(fault=fault) as server:
        client = make_client(server, concurrency=1, max_retries=0)
        assert [answer.value for answer in ask(client, "a", "b")] == [0.5, 0.5]
        kinds = [request.get("response_format", {}).get("type") for request in server.requests]
        assert kinds == (
            ["json_schema", "json_object", "json_object"] if takes else ["json_schema", "json_object", None, None]
        )


@pytest.mark.parametrize("fault", ["404", "redirect"])
def test_one_that_has_answered_is_asked_on(make_client, fault):
    with JudgeServer(fault=lambda body, attempt: fault if body["messages"][0]["content"] == "bad" else "") as server:
        client = make_client(server, concurrency=1)
        answers = ask(client, "good", "bad", "better")
        assert [answer.kind for answer in answers] == ["", "model_grader_server_error", ""]
        assert len(server.requests) == 3


def test_a_request_that_is_sent_again_over_a_new_connection_is_counted(make_client):
    """The endpoint may have charged for it."""

    def fault(body, attempt):
        return "reset" if body["messages"][0]["content"] == "b" and attempt == 0 else ""

    with JudgeServer(fault=fault) as server:
        client = make_client(server, concurrency=1, max_retries=0)
        assert [answer.value for answer in ask(client, "a", "b")] == [0.5, 0.5]
        assert len(server.requests) == 3
        assert [usage.calls for usage in client.usage()] == [3]
        figures = client.take_figures()
        assert (figures["calls"], figures["questions"], figures["prompt_tokens"]) == (3, 2, 200)


def test_equal_questions_are_asked_once_also_at_the_same_time_and_after_a_restart(make_client, tmp_path):
    with JudgeServer() as server:
        client = make_client(server)
        client.keep_in(tmp_path)
        ask(client, *"aaabab")
        assert len(server.requests) == 2
        (answer,) = ask(client, "a")
        assert (answer.value, answer.cached) == (0.5, True)
        client.close()
        again = make_client(server)
        again.keep_in(tmp_path)
        assert [answer.cached for answer in ask(again, "a", "b", "c")] == [True, True, False]
        assert len(server.requests) == 3


def test_faults_are_not_kept(make_client, tmp_path):
    with JudgeServer(fault=lambda body, attempt: "refusal" if attempt == 0 else "") as server:
        client = make_client(server)
        client.keep_in(tmp_path)
        assert [ask(client, "a")[0].kind for _ in range(2)] == ["model_grader_refusal_error", ""]


def test_ten_percent_429_cost_few_calls(make_client):
    with JudgeServer(fault=at_random(0.1, "429", "429 zero")) as server:
        client = make_client(server)
        answers = ask(client, *map(str, range(120)))
        assert {answer.kind for answer in answers} == {""}
        assert 1.05 * 120 < len(server.requests) <= 1.3 * 120


def test_a_server_with_a_limit_is_not_stormed(make_client):
    """So many requests a second and 429 with Retry-After for the rest: the whole client waits, not each call alone."""
    rate, lock = 30.0, threading.Lock()
    allowed = [rate, time.monotonic()]

    def limit(body, attempt):
        with lock:
            now = time.monotonic()
            allowed[0] = min(allowed[0] + rate * (now - allowed[1]), rate)
            allowed[1] = now
            if allowed[0] < 1:
                return "429 seconds"
            allowed[0] -= 1
            return ""

    with JudgeServer(fault=limit) as server:
        answers = ask(make_client(server, concurrency=16), *map(str, range(100)))
        assert {answer.kind for answer in answers} == {""}
        assert len(server.requests) <= 1.3 * 100


@pytest.mark.parametrize(("fault", "at_least_s"), [("429 seconds", 1.0), ("429 date", 0.5)])
def test_retry_after_is_kept_by_every_call(make_client, fault, at_least_s):
    with JudgeServer(fault=lambda body, attempt: fault if body["messages"][0]["content"] == "0" else "") as server:
        client = make_client(server, concurrency=2, max_retries=1)
        server.fault = lambda body, attempt: fault if len(server.requests) == 1 else ""
        assert ask(client, "0")[0].value == 0.5
        ask(client, "1")
        assert server.at[1] - server.at[0] >= at_least_s


def test_requests_per_minute_are_spaced(make_client):
    with JudgeServer() as server:
        ask(make_client(server, requests_per_minute=1200), *map(str, range(11)))
        assert server.at[-1] - server.at[0] >= 10 * 0.05 - 0.03


def test_no_more_than_concurrency_at_once(make_client):
    def until_three_are_there(body):
        wait_until(lambda: server.most_under_way >= 3)
        return {"result": 0}

    with JudgeServer(until_three_are_there) as server:
        ask(make_client(server, concurrency=3), *map(str, range(12)))
        assert server.most_under_way == 3


def test_a_judge_that_is_down_for_a_while_costs_no_score(make_client):
    with JudgeServer(fault=lambda body, attempt: "503" if len(server.requests) <= 20 else "") as server:
        client = make_client(server, max_retries=1, max_wait_s=20.0)
        told = []
        client.tell = told.append
        answers = ask(client, *map(str, range(30)))
        assert sum(answer.kind == "" for answer in answers) >= 26  # those whose retries ended before it was known
        assert len(server.requests) <= 20 + 30 + 8
        assert told[0].startswith("the judge is down (it answered 503")
        assert told[-1].startswith("the judge answers again")


@pytest.mark.parametrize(("down", "max_wait_s"), [("wait", 0.4), ("pause", 600.0)])
def test_a_judge_that_stays_down_is_given_up_by_policy(make_client, down, max_wait_s):
    with JudgeServer(fault=lambda body, attempt: "reset") as server:
        client = make_client(server, down=down, max_wait_s=max_wait_s, max_retries=9)
        started = time.monotonic()
        answers = ask(client, *map(str, range(40)))
        assert {answer.kind for answer in answers} == {"judge_down"}
        assert time.monotonic() - started < 5
        assert len(server.requests) < 40


def test_a_closed_port_is_a_judge_that_is_down(make_client):
    with JudgeServer() as server:
        pass
    (answer,) = ask(make_client(server, down="pause", max_retries=9), "a")
    assert answer.kind == "judge_down"


@pytest.mark.parametrize(
    "budget", [{"budget_tokens": 1000}, {"budget_cost": 0.001, "prices": {"judge": {"input": 9, "output": 10}}}]
)
def test_a_budget_ends_the_asking_and_counts_what_was_spent_before(make_client, tmp_path, budget):
    with JudgeServer() as server:
        client = make_client(server, concurrency=1, **budget)
        client.keep_in(tmp_path)
        kinds = [answer.kind for answer in ask(client, *map(str, range(20)))]
        assert kinds == [""] * len(server.requests) + ["judge_budget"] * (20 - len(server.requests))
        assert len(server.requests) == (10 if "budget_tokens" in budget else 1)
        client.close()
        again = make_client(server, **budget)
        again.keep_in(tmp_path)
        assert [answer.kind for answer in ask(again, "0", "new")] == ["", "judge_budget"]


def test_closing_answers_what_waits(make_client):
    with JudgeServer(fault=lambda body, attempt: "hang") as server:
        client = make_client(server, concurrency=1, timeout_s=1.0)
        futures = [client.ask(question(str(number))) for number in range(5)]
        time.sleep(0.1)
        client.close()
        assert {future.result(10).kind for future in futures[1:]} == {"model_grader_server_error"}


def test_what_keeps_a_judge_from_being_asked_is_said_at_once(monkeypatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"reward_fns\.judge\.base_url is not set"):
        JudgeClient(JudgeConfig())
    with pytest.raises(ConfigError, match="no address of an endpoint"):
        JudgeClient(JudgeConfig(base_url="https://user:pass@host/v1"))
    with pytest.raises(SetupError, match=r"NO_SUCH_KEY .* is not set. export NO_SUCH_KEY"):
        JudgeClient(JudgeConfig(base_url="https://judge.example/v1", api_key_env="NO_SUCH_KEY"))
    with pytest.raises(ValueError, match="only sent over https"):
        JudgeConfig(base_url="http://judge.example/v1", api_key_env="NO_SUCH_KEY")
