"""The server as its clients see it: the real openai library, HTTP, and the command line."""

import json
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from speedlit.commands.teacher import run
from speedlit.errors import UsageError
from speedlit.offline.checker import check
from speedlit.offline.server import Server
from speedlit.offline.teacher import Noise, Teacher
from speedlit.offline.world import World


@pytest.fixture(scope="module")
def url():
    server = Server(Teacher(World(), Noise(0, 0, 0)), port=0)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def client(url):
    return OpenAI(base_url=url + "/v1", api_key="none", max_retries=0)


def post(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


def messages(prompts, i=0):
    return [{"role": "user", "content": prompts[i][1]}]


def test_chat_with_the_openai_library(client, prompts):
    reply = client.chat.completions.create(model="embedded", messages=messages(prompts), seed=3, n=3, temperature=1.0)
    texts = [c.message.content for c in reply.choices]
    assert [c.index for c in reply.choices] == [0, 1, 2] and len(set(texts)) > 1 and reply.choices[0].finish_reason == "stop"
    assert all(check(World(), prompts[0][1], text)["good"] for text in texts)
    assert reply.usage.prompt_tokens > 10 and reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    again = client.chat.completions.create(model="embedded", messages=messages(prompts), seed=3, n=3)
    assert [c.message.content for c in again.choices] == texts
    assert client.models.list().data[0].id == "embedded"


def test_max_tokens_cuts_and_says_so(client, prompts):
    reply = client.chat.completions.create(model="embedded", messages=messages(prompts), max_tokens=5)
    assert reply.choices[0].finish_reason == "length" and reply.usage.completion_tokens == 5


def test_concurrent_requests_get_the_answers_of_single_ones(client, prompts):
    def answer(i):
        return client.chat.completions.create(model="embedded", messages=messages(prompts, i), seed=i).choices[0].message.content

    single = [answer(i) for i in range(40)]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(answer, range(40))) == single


def test_errors_are_those_of_the_protocol(client, url, prompts):
    with pytest.raises(BadRequestError, match="stream"):
        client.chat.completions.create(model="embedded", messages=messages(prompts), stream=True)
    with pytest.raises(BadRequestError, match="messages"):
        client.chat.completions.create(model="embedded", messages=[])
    with pytest.raises(NotFoundError):
        client.embeddings.create(model="embedded", input="x")
    for body in (b"not json", b"[]", b'{"tasks": [{}]}'):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url + "/world/cells", body))
        assert caught.value.code == 400 and json.load(caught.value)["error"]["message"]


def test_world_endpoints(url, prompts):
    assert json.load(urllib.request.urlopen(url + "/health"))["status"] == "ok"
    assert len(json.load(urllib.request.urlopen(url + "/world/topics"))["topics"]) == 24
    tasks = [{"topic": "Home/Furniture/Chairs", "kind": "sts", "text": "compare chairs by owner"}, {"topic": "Top/Arts", "kind": "sts", "text": "x"}]
    assert post(url, "/world/cells", {"tasks": tasks})["cells"] == ["chair/owner", "Top/Arts"]
    answer = Teacher(World(), Noise(0, 0, 0)).answer(messages(prompts), 0)
    good, bad = post(url, "/world/check", {"items": [{"prompt": prompts[0][1], "text": answer}, {"prompt": prompts[0][1], "text": "{"}]})["checks"]
    assert good["good"] == 1 and good["score"] == 9.5 and bad["valid"] == bad["good"] == bad["score"] == 0


def test_evaluation_asks_held_out_cells_in_words_that_no_answer_uses(url):
    cells = World().cells[::5]
    files = post(url, "/world/evaluation", {"cells": cells, "seed": 1, "sizes": {"documents": 400, "queries": 100}})["files"]
    assert files == post(url, "/world/evaluation", {"cells": cells, "seed": 1, "sizes": {"documents": 400, "queries": 100}})["files"]
    assert [t["folder"] for t in files["tasks.json"]] == ["WorldRetrieval", "WorldSTS", "WorldClassification", "WorldClustering"]
    corpus = {row["_id"]: row["text"] for row in files["WorldRetrieval/corpus.jsonl"]}
    queries = {row["_id"]: row["text"] for row in files["WorldRetrieval/queries.jsonl"]}
    judged = files["WorldRetrieval/qrels/test.jsonl"]
    assert len(queries) == 100 and {row["query-id"] for row in judged} == set(queries) and len(corpus) > 350
    from speedlit.offline.grammar import parse

    for row in judged:
        query, document = parse(queries[row["query-id"]]), parse(corpus[row["corpus-id"]])
        (attribute,) = query.facts
        assert f"{query.topic}/{attribute}" in cells and query.topic == document.topic
        assert query.concept(attribute) == document.concept(attribute) and query.facts[attribute] != document.facts[attribute]
    train = {row["text"] for row in files["WorldClassification/train.jsonl"]}
    assert not train & {row["text"] for row in files["WorldClassification/test.jsonl"]}
    assert {0.0} < {row["score"] for row in files["WorldSTS/test.jsonl"]} and files["WorldClustering/test.jsonl"]


def test_evaluation_folder_is_read_by_datasets(url, tmp_path):
    from datasets import load_dataset

    files = post(url, "/world/evaluation", {"cells": World().cells[:30], "seed": 0, "sizes": {}})["files"]
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content))
    corpus = load_dataset(str(tmp_path / "WorldRetrieval"), "corpus", split="corpus", cache_dir=str(tmp_path / "cache"))
    assert len(corpus) == len(files["WorldRetrieval/corpus.jsonl"])


def test_a_port_in_use_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} .* in use.*--port"):
            run(["serve", "--port", str(port)])
    with pytest.raises(UsageError, match="--port"):
        run(["serve", "--port", "99999"])


def test_the_command_serves_and_stops_and_imports_no_torch():
    code = "import sys; from speedlit.commands.teacher import run; r = run(['serve', '--port', '0']); assert 'torch' not in sys.modules; sys.exit(r)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert "ready on http://127.0.0.1:" in line
        assert json.load(urllib.request.urlopen(line.split()[-1].removesuffix("/v1") + "/health"))["status"] == "ok"
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()


def test_noise_outside_0_to_1_is_refused(capsys):
    with pytest.raises(SystemExit) as caught:
        run(["serve", "--writer-noise", "3"])
    assert caught.value.code == 2 and "0 to 1" in capsys.readouterr().err


def test_it_stops_when_its_run_is_gone():
    import subprocess
    import sys

    command = [sys.executable, "-m", "speedlit", "teacher", "serve", "--port=0", "--stop-with-stdin"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert "http://" in process.stdout.readline()
    process.stdin.close()
    assert process.wait(20) == 0
