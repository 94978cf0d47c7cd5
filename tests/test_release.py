"""Releases: what is refused, and what clients make of a good one and of four broken ones, from a local server."""

import functools
import http.server
import json
import re
import shutil
import subprocess
import threading

import pytest
from bundle_project import copy_of, shared
from test_verify import change_json, keys, list_again
from tiny_project import flip_bit

from eval.clients import android as android_client
from eval.pages import LOOP, Page, why_missing
from eval.tokenizers import ask_program, kotlin
from export.bundles import web as web_bundle
from pipeline.base import records
from pipeline.base.errors import IntegrityError, SettingsError
from pipeline.base.records import Status, Tokenizers, Verdict
from pipeline.formats.bundles import NOT_MADE, read_manifest
from stages.commands import release as command
from stages.commands import verify
from stages.releasing import signing
from stages.releasing.releases import NotReleasedError, read_index, release

# What signs has an environment of its own (`make signing`), which `make test` does not promise; the reason says so.
pytestmark = pytest.mark.skipif(signing.why_unusable() is not None, reason=str(signing.why_unusable()))
__all__ = ["keys"]
NO_PAGE = web_bundle.why_unusable() or why_missing()
NO_JAVA = android_client.why_unusable()
# What this machine cannot try; where there is neither a browser nor Java, all but Python's.
UNTRIED = ("ios", "web", "android")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Without the note of what could not be made, which is one for web pages where there is no `make browser`."""
    workspace = copy_of(shared(tmp_path_factory)[1], tmp_path_factory.mktemp("project") / "copy")
    (workspace.bundles / NOT_MADE).unlink(missing_ok=True)
    return workspace


@pytest.fixture(scope="module")
def released(project, keys, tmp_path_factory):
    """The folder of releases after two versions."""
    folder = tmp_path_factory.mktemp("releases")
    for version in ("1.0.0", "1.1.0"):
        release(project, version, keys[0], folder, not_tried=UNTRIED)
    return folder


def test_a_release_is_signed_has_version_and_revision_and_is_in_the_index(released, keys, capsys):
    index = read_index(released)
    platforms = [one.platform for one in index.releases if one.version == "1.1.0"]
    assert platforms == sorted(platforms) and {"android", "ios", "python"} <= set(platforms)
    folder = released / "1.1.0" / "python"
    assert read_manifest(folder).version == "1.1.0"
    assert verify.command(folder, keys[1]) == 0 and verify.command(released / "1.1.0" / "python.zip", keys[1]) == 0
    if NO_PAGE is None:
        assert json.loads((released / "1.1.0/web/package.json").read_text())["version"] == "1.1.0"


def test_the_command_says_what_was_made_and_the_key_for_apps(project, keys, tmp_path, capsys):
    command.command("2.0.0", keys[0], tmp_path / "releases", list(UNTRIED), None, project.root)
    said = capsys.readouterr().out
    assert "✓ tiny 2.0.0 for python:" in said
    assert f"public key for apps: {signing.public_key(keys[0])}" in said


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.1.0", "1.0.9", "0.9.0"])
def test_a_version_that_is_not_above_all_others_is_refused(project, keys, released, version):
    with pytest.raises(SettingsError, match=f"found version {version}, expected one above 1.1.0"):
        release(project, version, keys[0], released)


@pytest.mark.parametrize(
    "version", ["1", "1.2", "v1.2.0", "1.2.0-rc1", "1.2.x", "-1.2.3", "1.2.9999999", "01.2.3", "١.٢.٣"]
)
def test_a_version_is_three_numbers(project, keys, tmp_path, version):
    with pytest.raises(SettingsError, match=r"expected three numbers, such as 1.4.0"):
        release(project, version, keys[0], tmp_path)


@pytest.mark.parametrize("status", [Status.FAIL, Status.INCONCLUSIVE, Status.NOT_MEASURED])
def test_a_bundle_whose_verdict_is_no_pass_is_refused_with_exit_status_1(project, keys, tmp_path, status):
    """Though somebody wrote its manifest anew."""
    workspace = copy_of(project, tmp_path / "copy")
    list_again(workspace.bundles / "python", verdict=status.value)
    message = f"python: the verdict of the project is '{status}', expected 'pass'"
    with pytest.raises(NotReleasedError, match=message) as caught:
        release(workspace, "1.0.0", keys[0], tmp_path / "releases", not_tried=UNTRIED)
    assert caught.value.exit_status == 1
    assert not list((tmp_path / "releases").glob("[!.]*"))


def test_a_bundle_of_another_verdict_is_refused(project, keys, tmp_path):
    workspace = copy_of(project, tmp_path / "copy")
    path = workspace.report / "verdict.json"
    records.write(records.read(Verdict, path).model_copy(update={"first_line": "another"}), path)
    with pytest.raises(NotReleasedError, match="made for another verdict than the last; run `dvc repro`"):
        release(workspace, "1.0.0", keys[0], tmp_path / "releases")


def test_a_damaged_bundle_is_refused_and_nothing_is_left(project, keys, tmp_path):
    """Row 35 of the faults."""
    workspace = copy_of(project, tmp_path / "copy")
    flip_bit(workspace.bundles / "ios" / "Package.swift")
    with pytest.raises(IntegrityError, match=r"Package.swift: found SHA-256"):
        release(workspace, "1.0.0", keys[0], tmp_path / "releases", not_tried=UNTRIED)
    assert not list((tmp_path / "releases").glob("*"))


def test_a_key_that_cannot_sign_is_refused_with_how_to_make_one(project, keys, tmp_path):
    """A public one, one of another curve, one of a curve that nobody reads, none."""
    paths = [keys[1], tmp_path / "none.pem"]
    for curve in ("secp384r1", "secp112r1"):
        paths.append(tmp_path / f"{curve}.pem")
        words = ["openssl", "ecparam", "-genkey", "-name", curve, "-noout", "-out", paths[-1]]
        subprocess.run(words, check=False, capture_output=True)
    for path in paths:
        with pytest.raises(SettingsError, match="openssl ecparam -genkey -name prime256v1"):
            release(project, "1.0.0", path, tmp_path / "releases")


def test_a_bundle_that_was_not_tried_is_refused_unless_it_is_named(project, keys, tmp_path):
    """iOS's code runs on another system."""
    others = {"without": ("web", "android")}
    with pytest.raises(NotReleasedError, match=r"ios: its code was not tried here: .* --not-tried ios"):
        release(project, "1.0.0", keys[0], tmp_path, **others)
    made = release(project, "1.0.0", keys[0], tmp_path, not_tried=("ios",), **others)
    assert [one.platform for one in made] == ["ios", "python"]


def test_a_tokenizer_that_was_not_compared_is_refused(project, keys, tmp_path):
    """Planted in the record."""
    workspace = copy_of(project, tmp_path / "copy")
    record = records.read(Tokenizers, workspace.tokenizers)
    facts = record.found["tokenizers"].model_copy(update={"not_compared": "no time"})
    records.write(record.model_copy(update={"found": {**record.found, "tokenizers": facts}}), workspace.tokenizers)
    with pytest.raises(NotReleasedError, match="python: its code was not tried here: no time"):
        release(workspace, "1.0.0", keys[0], tmp_path / "releases", without=("ios", "web", "android"))


def test_a_platform_that_could_not_be_made_stops_the_release(project, keys, tmp_path):
    workspace = copy_of(project, tmp_path / "copy")
    (workspace.bundles / NOT_MADE).write_text('{"web": "not installed: onnxruntime-web"}')
    message = "no bundle for web: not installed: onnxruntime-web; or leave it out with --without web"
    with pytest.raises(NotReleasedError, match=message):
        release(workspace, "1.0.0", keys[0], tmp_path / "releases", not_tried=UNTRIED)


def test_an_index_that_cannot_be_read_stops(project, keys, tmp_path):
    (tmp_path / "index.json").write_text('{"releases": [{"version": "1.0.0"}]}')
    with pytest.raises(IntegrityError, match=r"index.json: no index of releases"):
        release(project, "1.1.0", keys[0], tmp_path)


# --- clients ------------------------------------------------------------------------------------------------------


def resign(folder, keys, **changes):
    """As the holder of the key does who releases something bad."""
    list_again(folder, **changes)
    signing.sign(folder, keys[0])


def fails_its_test(folder, platform, keys):
    home = folder / read_manifest(folder).home
    change_json(home / "golden.json", lambda value: value["rows"][0].update(ids=[1, 2, 3]))
    resign(folder, keys)


def is_cut_short(folder, platform, keys):
    model = folder / read_manifest(folder).model
    model.write_bytes(model.read_bytes()[:-1_000])


def was_tampered_with(folder, platform, keys):
    """By somebody without the key, who wrote the manifest anew."""
    flip_bit(folder / read_manifest(folder).model)
    list_again(folder)


def is_an_older_one(folder, platform, keys):
    """The good and signed 1.0.0 under the name of a new version."""
    shutil.rmtree(folder)
    shutil.copytree(folder.parents[1] / "1.0.0" / platform, folder)


BROKEN = {
    fails_its_test: "the new version fails its self-test: row 0: token ids",
    is_cut_short: "bytes, expected ",
    was_tampered_with: "manifest.json: found SHA-256 ",
    is_an_older_one: "found tiny 1.0.0 for .*, expected tiny 1.1.0",
}


def serve(folder):
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        """Nothing."""


def only(releases, out, platform, version):
    """Releases as they were when there was one version."""
    (out / version).mkdir(parents=True)
    shutil.copytree(releases / version / platform, out / version / platform)
    rows = [one for one in read_index(releases).releases if (one.platform, one.version) == (platform, version)]
    (out / "index.json").write_text(
        json.dumps({"releases": [row.model_dump(exclude={"schema_version"}) for row in rows]})
    )
    return out


# Kotlin's compiler comes with `make clients`, Java from the system; `make test` promises neither.
@pytest.mark.skipif(NO_JAVA is not None, reason=str(NO_JAVA))
class TestKotlin:
    """The update function of the bundle for Android, on Java's machine, with recorded outputs in LiteRT's place."""

    @pytest.fixture
    def ask(self, released, keys, tmp_path):
        """Asks the client to do something; gives what it says and the version that it then has."""

        def ask(verb, releases, came="0.0.0", name="tiny"):
            home = released / "1.0.0" / "android" / "model/src/main/assets/decant"
            rows = json.loads((home / "golden.json").read_text("utf-8"))["rows"]
            (tmp_path / "outputs.json").write_text(json.dumps([[row["ids"], row["outputs"]] for row in rows]))
            (tmp_path / "model.json").write_text(json.dumps({"name": name, "platform": "android", "version": came}))
            server = serve(releases)
            try:
                address = f"http://127.0.0.1:{server.server_port}/"
                words = (str(tmp_path / "held"), signing.public_key(keys[0]), address)
                files = (str(tmp_path / "model.json"), str(tmp_path / "outputs.json"))
                return ask_program(kotlin.program(verb, *words, *files), None)
            finally:
                server.shutdown()
                server.server_close()

        return ask

    def test_it_updates_keeps_what_it_read_and_then_finds_nothing_newer(self, released, ask, tmp_path):
        assert ask("update", released) == {"said": "1.1.0", "holds": "1.1.0"}
        held = {path.name for path in (tmp_path / "held" / "1.1.0").iterdir()}
        assert held >= {"model.json", "golden.json", "word_pieces.json", "model.onnx"}
        assert ask("update", released) == {"said": "none is newer", "holds": "1.1.0"}

    def test_it_goes_back_and_does_not_take_the_same_version_again(self, released, ask, tmp_path):
        assert ask("update", only(released, tmp_path / "first", "android", "1.0.0"))["holds"] == "1.0.0"
        assert ask("update", released)["holds"] == "1.1.0"
        assert ask("back", released) == {"said": "1.0.0", "holds": "1.0.0"}
        assert ask("update", released) == {"said": "none is newer", "holds": "1.0.0"}

    @pytest.mark.parametrize("came", ["1.1.0", "2.0.0"])
    def test_nothing_that_is_not_above_what_the_app_came_with_is_taken_or_used(self, released, ask, came):
        """Neither released anew nor held from before the app was updated."""
        assert ask("update", released) == {"said": "1.1.0", "holds": "1.1.0"}
        assert ask("update", released, came) == {"said": "none is newer", "holds": None}

    def test_another_model_is_not_taken(self, released, ask):
        """Though the same key signed it."""
        assert ask("update", released, name="another") == {"said": "none is newer", "holds": None}

    def test_a_page_in_place_of_the_index_and_a_damaged_pointer_are_borne(self, released, ask, tmp_path):
        (tmp_path / "hotel").mkdir()
        (tmp_path / "hotel" / "index.json").write_text("<html>Please log in</html>")
        found = ask("update", tmp_path / "hotel")
        assert found["holds"] is None and found["said"].startswith("refused: the release cannot be read: not JSON")
        (tmp_path / "held").mkdir(exist_ok=True)
        (tmp_path / "held" / "versions.json").write_text('{"versions": ["1.')
        assert ask("update", released) == {"said": "1.1.0", "holds": "1.1.0"}

    @pytest.mark.parametrize("breaking", BROKEN)
    def test_a_broken_release_is_refused_and_the_version_before_stays(self, released, keys, ask, tmp_path, breaking):
        assert ask("update", only(released, tmp_path / "first", "android", "1.0.0"))["holds"] == "1.0.0"
        releases = tmp_path / "releases"
        shutil.copytree(released, releases)
        breaking(releases / "1.1.0" / "android", "android", keys)
        found = ask("update", releases)
        assert found["holds"] == "1.0.0"
        assert re.match(f"refused: .*{BROKEN[breaking]}", found["said"]), found["said"]


# In a page: the same module that apps import, and the browser's own cache.
PAGE = """<!doctype html><meta charset="utf-8"><script type="importmap">
{"imports": {"onnxruntime-web/wasm": "./app/vendor/ort.wasm.min.mjs"}}</script><script type="module">
import * as ort from "onnxruntime-web/wasm";
import { Classifier } from "./app/classifier.js";
import { CacheStore, update } from "./app/updates.js";
ort.env.wasm.wasmPaths = new URL("./app/vendor/", import.meta.url).href;
ort.env.logLevel = "error";
const build = (read) => Classifier.load(undefined, read);
const tasks = {
  async update({came, releases, key}) {
    const store = new CacheStore(came);
    let said;
    try {
      const found = await update(new URL(releases, import.meta.url), {store, key, build});
      said = found.changed ? found.version : "none is newer";
    } catch (error) { said = `refused: ${error.message}`; }
    return {said, holds: (await store.current()) ?? null};
  },
  async classify({came, text}) {
    const newest = await new CacheStore(came).newest(build);
    return {label: newest === undefined ? null : (await newest.classify(text)).label};
  },
  async back({came}) {
    const store = new CacheStore(came);
    return {said: (await store.rollBack()) ?? "to what it came with", holds: (await store.current()) ?? null};
  },
  async forget() {
    for (const name of await caches.keys()) await caches.delete(name);
    return {};
  },
};
LOOP</script>""".replace("LOOP", LOOP)


@pytest.fixture(scope="module")
def page(released):
    folder = released / "1.0.0" / "web"
    page = Page(PAGE, {f"app/{file.relative_to(folder)}": file for file in folder.rglob("*") if file.is_file()})
    yield page
    page.close()


# Chromium and onnxruntime-web come with `make browser`, which `make test` does not promise.
@pytest.mark.skipif(NO_PAGE is not None, reason=str(NO_PAGE))
class TestBrowser:
    """The update function of the bundle for web pages, in a browser, with its cache."""

    @pytest.fixture
    def ask(self, page, keys):
        """As for Kotlin; each test begins with an empty cache."""
        page.ask({"do": "forget"}, "")

        def ask(verb, releases, came="0.0.0", name="tiny", **more):
            found = {file.relative_to(releases).as_posix(): file for file in releases.rglob("*") if file.is_file()}
            page.files.update({f"{releases.name}/{one}": file for one, file in found.items()})
            task = {"came": {"name": name, "platform": "web", "version": came}, "releases": f"./{releases.name}/"}
            return page.ask({"do": verb, **task, "key": signing.public_key(keys[0]), **more}, releases)

        return ask

    def test_it_updates_answers_from_the_new_version_and_goes_back(self, released, ask, tmp_path):
        """And does not take again what it went back from."""
        first = only(released, tmp_path / "first", "web", "1.0.0")
        assert ask("classify", first, text="play the song") == {"label": None}
        assert ask("update", first) == {"said": "1.0.0", "holds": "1.0.0"}
        assert ask("update", released) == {"said": "1.1.0", "holds": "1.1.0"}
        assert ask("update", released) == {"said": "none is newer", "holds": "1.1.0"}
        assert ask("classify", released, text="play the song") == {"label": "music"}
        assert ask("back", released) == {"said": "1.0.0", "holds": "1.0.0"}
        assert ask("classify", released, text="play the song") == {"label": "music"}
        assert ask("update", released) == {"said": "none is newer", "holds": "1.0.0"}

    def test_neither_an_older_version_nor_another_model_is_taken(self, released, ask):
        assert ask("update", released, "1.1.0") == {"said": "none is newer", "holds": None}
        assert ask("update", released, name="another") == {"said": "none is newer", "holds": None}
        assert ask("update", released)["holds"] == "1.1.0"
        assert ask("update", released, "2.0.0") == {"said": "none is newer", "holds": None}

    @pytest.mark.parametrize("breaking", BROKEN)
    def test_a_broken_release_is_refused_and_the_version_before_stays(self, released, keys, ask, tmp_path, breaking):
        assert (
            ask("update", only(released, tmp_path / f"first_{breaking.__name__}", "web", "1.0.0"))["holds"] == "1.0.0"
        )
        releases = tmp_path / breaking.__name__
        shutil.copytree(released, releases)
        breaking(releases / "1.1.0" / "web", "web", keys)
        found = ask("update", releases)
        assert found["holds"] == "1.0.0"
        assert re.match(f"refused: .*{BROKEN[breaking]}", found["said"]), found["said"]
