"""A real server whose model has a draft model: by a flag, or by the settings beside the model."""

import json
import re
from pathlib import Path

from lmlite.server.models.loading import EMBEDDED_MODEL
from tests.served.test_faults import serve
from tests.support.gguf_writer import tiny_llama
from tests.support.server_process import RunningServer

V0_CHAT = "/api/v0/chat/completions"
COUNT = {"messages": [{"role": "user", "content": "Count from 1 to 20."}], "temperature": 0}
DRAFTED = re.compile(r'lmlite_draft_tokens_total\{kind="(\w+)"\} (\d+)')


def test_a_model_that_drafts_for_itself_answers_the_same_in_fewer_steps() -> None:
    with RunningServer() as server:
        plain = server.post(V0_CHAT, **COUNT).json
    with RunningServer("--draft", str(EMBEDDED_MODEL)) as server:
        answer = server.post(V0_CHAT, **COUNT, draft_model="tiny").json
        assert (answer["choices"], answer["usage"]) == (plain["choices"], plain["usage"])
        stats = answer["stats"]
        n_drafted = stats["total_draft_tokens_count"]
        assert stats["draft_model"] == "tiny"
        assert stats["accepted_draft_tokens_count"] + stats["rejected_draft_tokens_count"] == (
            n_drafted
        )
        assert n_drafted >= stats["accepted_draft_tokens_count"] > 10
        shown = dict(DRAFTED.findall(server.get("/metrics").body.decode()))
        assert shown.keys() == {"drafted", "accepted"}
        memory = server.get("/health").json["memory"]
        assert memory["estimated"]["draft"] > EMBEDDED_MODEL.stat().st_size
    assert "draft_model" not in plain["stats"]


def test_a_draft_model_with_another_vocabulary_is_one_sentence_and_exit_code_1(
    tmp_path: Path,
) -> None:
    tiny_llama(tmp_path / "other.gguf")
    done = serve("--port", "0", "--draft", str(tmp_path / "other.gguf"))
    assert done.returncode == 1
    assert "other.gguf cannot draft for this model: it has another vocabulary (" in done.stderr
    done = serve("--port", "0", "--draft", str(tmp_path / "none.gguf"))
    assert done.returncode == 1
    assert done.stderr.startswith("lmlite: none.gguf cannot be loaded: it does not exist")


def test_the_settings_of_a_model_name_its_draft_model(tmp_path: Path) -> None:
    for name in ("large", "small", "alone"):
        (tmp_path / f"{name}.gguf").write_bytes(EMBEDDED_MODEL.read_bytes())
    (tmp_path / "large.json").write_text(json.dumps({"draft": "small.gguf"}))
    field = {"key": "llm.prediction.speculativeDecoding.draftModel", "value": "nowhere"}
    (tmp_path / "alone.json").write_text(json.dumps({"operation": {"fields": [field]}}))
    with RunningServer("--models", str(tmp_path)) as server:
        stats = server.post(V0_CHAT, **COUNT, model="large").json["stats"]
        assert (stats["draft_model"], stats["accepted_draft_tokens_count"] > 0) == ("small", True)
        stats = server.post(V0_CHAT, **COUNT, model="alone").json["stats"]
        assert "draft_model" not in stats
        assert any("alone has no draft model: " in line for line in server.log)
