"""`decant verify` on a sound bundle and on more than thirty that somebody spoiled, each with its message."""

import contextlib
import json
import os
import shutil
import stat
import subprocess
import zipfile

import pytest
from bundle_project import shared
from tiny_project import flip_bit

from pipeline.base.errors import IntegrityError, SettingsError
from pipeline.formats import bundles
from pipeline.formats.bundles import MANIFEST, SIGNATURE, check_files, read_manifest, unpack, write_manifest, write_zip
from stages.commands import verify
from stages.releasing import signing

NO_SIGNER = signing.why_unusable()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The Python bundle of the tiny project, unpacked."""
    _, workspace = shared(tmp_path_factory)
    folder = tmp_path_factory.mktemp("sound") / "python"
    unpack(workspace.bundles / "python.zip", folder)
    return folder


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    """(private, public, public of another) as PEM files, made as the message of a wrong key says."""
    folder = tmp_path_factory.mktemp("keys")
    made = []
    for name in ("ours", "theirs"):
        private, public = folder / f"{name}.pem", folder / f"{name}.public.pem"
        for command in signing.NEW_KEY.replace("KEY.pem", str(private)).replace("PUBLIC.pem", str(public)).split("; "):
            subprocess.run(command.split(), check=True, capture_output=True)
        made.append((private, public))
    return made[0][0], made[0][1], made[1][1]


@pytest.fixture(scope="module")
def signed(bundle, keys, tmp_path_factory):
    folder = tmp_path_factory.mktemp("signed") / "python"
    shutil.copytree(bundle, folder)
    if NO_SIGNER is None:
        signing.sign(folder, keys[0])
    return folder


def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "bundle")


def list_again(folder, **changes):
    """As somebody does who knows that the manifest has hashes, but has no key."""
    manifest = read_manifest(folder)
    write_manifest(folder, **(manifest.model_dump(exclude={"files", "schema_version", "kind"}) | changes))


def change_json(path, change):
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")


def test_a_sound_bundle_is_verified_and_what_could_not_be_checked_is_said(bundle, capsys):
    """Files, bill of materials and golden vectors; nobody signed it."""
    assert verify.command(bundle) == 0
    said = capsys.readouterr().out
    assert "✓ tiny 0.0.0 for python: 13 files" in said and "golden vectors answered as they should be" in said
    assert "its verdict: pass, of its target 'cpu': pass" in said


# --- files and manifest ------------------------------------------------------------------------------------------


def rename_in_manifest(old, new):
    def change(folder):
        change_json(folder / MANIFEST, lambda value: value["files"].update({new: value["files"].pop(old)}))

    return change


def set_in_manifest(**changes):
    return lambda folder: change_json(folder / MANIFEST, lambda value: value.update(changes))


SPOILED = {
    "a bit of the model": (lambda f: flip_bit(f / "model.onnx"), "model.onnx: found SHA-256 "),
    "a file cut short": (lambda f: (f / "session.py").write_text("x"), "session.py: found 1 bytes, expected "),
    "a file longer": (
        lambda f: (f / "session.py").write_text("#" * 10_000),
        "session.py: found 10,000 bytes, expected ",
    ),
    "a file missing": (lambda f: (f / "NOTICES.md").unlink(), "NOTICES.md: missing, but listed"),
    "a file added": (lambda f: (f / "extra.py").write_text(""), "extra.py: not listed in manifest.json"),
    "an empty folder": (lambda f: (f / "empty").mkdir(), "empty: an empty folder"),
    "a hidden file": (lambda f: (f / ".git").write_text(""), ".git: not listed"),
    "a link to a file": (
        lambda f: ((f / "session.py").rename(f.parent / "session.py"), (f / "session.py").symlink_to(f.parent)),
        "session.py: a link",
    ),
    "a link to a folder": (lambda f: (f / "elsewhere").symlink_to(f.parent), "elsewhere: a link"),
    "a pipe": (lambda f: os.mkfifo(f / "pipe"), "pipe: no plain file"),
    "a hash in the manifest": (
        lambda f: change_json(f / MANIFEST, lambda v: v["files"]["session.py"].update(sha256="0" * 64)),
        "session.py: found SHA-256 .*expected 0000",
    ),
    "a size in the manifest": (
        lambda f: change_json(f / MANIFEST, lambda v: v["files"]["session.py"].update(bytes=1)),
        "session.py: found .* expected 1;",
    ),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "manifest.json: no such file, so this is no bundle"),
    "a manifest cut short": (lambda f: (f / MANIFEST).write_text("{"), "not a manifest"),
    "a manifest nested without end": (lambda f: (f / MANIFEST).write_text("[" * 100_000), "not a manifest"),
    "a manifest that says more": (set_in_manifest(more=1), "not a manifest: 'more': Extra inputs"),
    "a name of two lines": (set_in_manifest(name="tiny\n✓ signed"), "not a manifest: 'name': String should match"),
    "a version in other digits": (set_in_manifest(version="１.0.0"), "not a manifest: 'version': String should match"),
    "a verdict that is none": (set_in_manifest(verdict="fine"), "not a manifest: 'verdict': Input should be"),
    "a manifest of another kind": (set_in_manifest(kind="decant bundle 2"), "found kind 'decant bundle 2'"),
    "a name that leads out": (rename_in_manifest("session.py", "../session.py"), "the name '../session.py' cannot"),
    "a name from the root": (rename_in_manifest("session.py", "/etc/passwd"), "the name '/etc/passwd' cannot"),
    "a name with a drive": (rename_in_manifest("session.py", "C:\\session.py"), "cannot be that of a file"),
    "a name in another case": (
        lambda f: change_json(f / MANIFEST, lambda v: v["files"].update({"SESSION.py": v["files"]["session.py"]})),
        "'session.py' and 'SESSION.py'|'SESSION.py' and 'session.py'",
    ),
    "a file that is a folder": (
        lambda f: change_json(f / MANIFEST, lambda v: v["files"].update({"session.py/x": v["files"]["session.py"]})),
        "'session.py/x' lies in 'session.py', which is a file",
    ),
    "a model that is elsewhere": (set_in_manifest(model="../model.onnx"), "the name '../model.onnx' cannot"),
    "a model that is not listed": (set_in_manifest(model="other.onnx"), "its model is 'other.onnx', which is no file"),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_files_are_held_against_the_manifest(bundle, tmp_path, spoiled):
    spoil, message = SPOILED[spoiled]
    folder = copy(bundle, tmp_path)
    spoil(folder)
    with pytest.raises(IntegrityError, match=message):
        verify.command(folder)


# --- what hashes alone do not see ---------------------------------------------------------------------------------


def swap_labels(folder):
    change_json(folder / "model.json", lambda value: value["labels"].reverse())


def other_weights(folder):
    import onnx

    model = onnx.load(folder / "model.onnx")
    tensor = next(one for one in model.graph.initializer if len(one.dims) == 2 and one.raw_data)
    tensor.raw_data = bytes(len(tensor.raw_data))
    onnx.save(model, folder / "model.onnx")


AGAINST_ITSELF = {
    "labels in another order": (swap_labels, "golden vectors differ: .*answers "),
    "other weights": (other_weights, "golden vectors differ: .*outputs "),
    "a tokenizer that keeps capitals": (
        lambda f: change_json(f / "tokenizer.json", lambda v: v["normalizer"].update(lowercase=False)),
        "golden vectors differ: .*token ids",
    ),
    "no tokenizer": (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json cannot be read"),
    "golden vectors of another kind": (lambda f: (f / "golden.json").write_text("[]"), "golden.json.* cannot be read"),
    "golden vectors nested without end": (
        lambda f: (f / "golden.json").write_text("[" * 100_000),
        "golden.json.* cannot be read",
    ),
    "a golden text that is a number": (
        lambda f: change_json(f / "golden.json", lambda v: v["rows"][0].update(text=5)),
        "golden.json.* cannot be read",
    ),
    "no golden vectors": (
        lambda f: change_json(f / "golden.json", lambda v: v["rows"].clear()),
        "found 0 golden vectors, expected 50",
    ),
    "golden vectors that allow anything": (
        lambda f: change_json(f / "golden.json", lambda v: v.update(tolerance=float("inf"))),
        "lets outputs be inf off, expected at most",
    ),
    "golden vectors of which none must be answered": (
        lambda f: change_json(f / "golden.json", lambda v: [row.update(sure=False) for row in v["rows"]]),
        "no golden vector must be answered",
    ),
    "another rule for ties": (
        lambda f: change_json(f / "golden.json", lambda v: v["ties"][0].update(answer=1)),
        "of level outputs it takes another than the first",
    ),
    "padding beyond all numbers": (
        lambda f: change_json(f / "model.json", lambda v: v.update(pad_id=10**30)),
        "golden.json.* cannot be read",
    ),
    "a bill nested without end": (
        lambda f: (f / "sbom.cdx.json").write_text("[" * 100_000),
        "no bill of materials with a model",
    ),
    "another model's name": (
        lambda f: change_json(f / "model.json", lambda v: v.update(file="manifest.json")),
        "names another model than the manifest",
    ),
    "a model that is none": (lambda f: (f / "model.onnx").write_bytes(b"x" * 100), "model.onnx: "),
    "a bill of another artefact": (
        lambda f: change_json(f / "sbom.cdx.json", lambda v: v["components"][0]["hashes"][0].update(content="0" * 64)),
        "sbom.cdx.json: is of another artefact",
    ),
    "a bill without a model": (
        lambda f: change_json(f / "sbom.cdx.json", lambda v: v.update(components=[])),
        "no bill of materials with a model",
    ),
    "a bill beyond its schema": (
        lambda f: change_json(f / "sbom.cdx.json", lambda v: v.update(surprise=1)),
        "not CycloneDX 1.7: .*surprise",
    ),
}


@pytest.mark.parametrize("spoiled", AGAINST_ITSELF)
def test_a_bundle_is_held_against_itself_where_the_manifest_was_written_anew(bundle, tmp_path, spoiled):
    """Every hash is right; what the files say is not."""
    spoil, message = AGAINST_ITSELF[spoiled]
    folder = copy(bundle, tmp_path)
    spoil(folder)
    list_again(folder)
    with pytest.raises(IntegrityError, match=message):
        verify.command(folder)


# --- signatures ---------------------------------------------------------------------------------------------------


# What checks signatures has an environment of its own (`make signing`), which `make test` does not promise.
@pytest.mark.skipif(NO_SIGNER is not None, reason=str(NO_SIGNER))
class TestSignatures:
    """The conformance cases of OpenSSF Model Signing that need no network: a good one, and what must not pass."""

    def test_a_signed_bundle_is_verified_with_its_key_and_undecided_without(self, signed, keys, capsys):
        assert verify.command(signed, keys[1]) == 0
        assert "✓ signed with the key of" in capsys.readouterr().out
        assert verify.command(signed) == 3
        assert "○ not checked: the signature: name the public key with --key" in capsys.readouterr().out

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda f: flip_bit(f / "model.onnx"),
            lambda f: ((f / "extra.txt").write_text("x"), list_again(f)),
            lambda f: ((f / "NOTICES.md").unlink(), list_again(f)),
            lambda f: list_again(f, verdict="pass", target_verdict="pass", version="9.9.9"),
            lambda f: (f / ".gitignore").write_text("x"),
            lambda f: (f / "session.py").rename(f / "other.py"),
            lambda f: (f / SIGNATURE).write_text((f / SIGNATURE).read_text()[:500]),
            lambda f: (f / SIGNATURE).write_text("{}"),
            lambda f: change_json(
                f / SIGNATURE, lambda v: v["dsseEnvelope"].update(payload="e30=" + v["dsseEnvelope"]["payload"])
            ),
            lambda f: change_json(f / SIGNATURE, lambda v: v["dsseEnvelope"]["signatures"].clear()),
        ],
        ids=["flipped", "added", "removed", "manifest", "hidden", "renamed", "cut", "empty", "payload", "none"],
    )
    def test_what_was_changed_after_signing_does_not_pass(self, signed, keys, tmp_path, spoil):
        folder = copy(signed, tmp_path)
        spoil(folder)
        with pytest.raises(IntegrityError, match=r"model.sig: not verified with"):
            verify.command(folder, keys[1])

    def test_another_key_does_not_pass(self, signed, keys):
        with pytest.raises(IntegrityError, match=r"not verified with .*theirs.public.pem"):
            verify.command(signed, keys[2])

    def test_a_key_that_is_none_is_a_usage_error(self, signed, keys, tmp_path):
        """Not a fault of the bundle's."""
        (tmp_path / "empty.pem").write_text("")
        for key in (tmp_path / "nowhere.pem", tmp_path / "empty.pem", keys[0]):
            with pytest.raises(SettingsError, match="no public key that can be read"):
                verify.command(signed, key)

    def test_a_signature_that_is_asked_for_must_be_there(self, bundle, keys):
        with pytest.raises(IntegrityError, match=r"no model.sig, so nobody signed it"):
            verify.command(bundle, keys[1])


# --- archives -----------------------------------------------------------------------------------------------------


def entry(name, mode=stat.S_IFREG | 0o644):
    made = zipfile.ZipInfo(name)
    made.create_system, made.external_attr = 3, mode << 16
    return made


def member(name, content=b"x", mode=stat.S_IFREG | 0o644):
    return lambda archive: archive.writestr(entry(name, mode), content)


def twice(archive):
    archive.writestr(entry("a"), b"x")
    with pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr(entry("a"), b"y")


ARCHIVES = {
    "a name that leads out": (member("../a"), "the name '../a' cannot"),
    "a name from the root": (member("/etc/passwd"), "the name '/etc/passwd' cannot"),
    "a name with a backslash": (member("..\\a"), "cannot be that of a file"),
    "a link": (member("link", b"/etc", stat.S_IFLNK | 0o777), "'link' is no plain file"),
    "a device": (member("device", b"", stat.S_IFCHR | 0o644), "'device' is no plain file"),
    "a folder": (member("folder/", b""), "cannot be that of a file|no plain file"),
    "a name twice": (twice, "'a' and 'a' are one file"),
    "a name in two cases": (lambda a: (member("a")(a), member("A")(a)), "'a' and 'A' are one file"),
    "a bomb": (
        lambda a: a.writestr(entry("zeros"), bytes(40_000_000), compress_type=zipfile.ZIP_DEFLATED),
        "bytes that unpack to 40,000,000",
    ),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_hostile_archive_writes_nothing(tmp_path, kind):
    """Row 34 of the faults: refused before a byte is written."""
    fill, message = ARCHIVES[kind]
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        fill(archive)
    with pytest.raises(IntegrityError, match=message):
        unpack(tmp_path / "bundle.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_archive_that_lies_about_its_sizes_or_is_cut_short_is_refused(bundle, tmp_path):
    path = tmp_path / "bundle.zip"
    write_zip(bundle, path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"PK" + whole[2:-40]):
        path.write_bytes(content)
        with pytest.raises(IntegrityError, match=r"bundle.zip: cannot be unpacked"):
            verify.command(path)
    # the size in the list of contents, of the first file: a hundred bytes less than it unpacks to
    at = whole.index(b"PK\x01\x02") + 24
    size = int.from_bytes(whole[at : at + 4], "little")
    path.write_bytes(whole[:at] + (size - 100).to_bytes(4, "little") + whole[at + 4 :])
    with pytest.raises(IntegrityError, match=r"cannot be unpacked|unpacks to more than it says|found .* bytes"):
        verify.command(path)


def test_any_bit_of_an_archive_that_turns_is_an_error_of_ours(bundle, tmp_path):
    """Never one of a library's; some bits, such as a date's, change nothing."""
    path = tmp_path / "bundle.zip"
    write_zip(bundle, path)
    whole = path.read_bytes()
    for number in range(40):
        path.write_bytes(whole)
        flip_bit(path, number * (len(whole) // 40))
        with contextlib.suppress(IntegrityError):
            unpack(path, tmp_path / f"out-{number}")
            check_files(tmp_path / f"out-{number}", read_manifest(tmp_path / f"out-{number}"))


def test_too_many_files_and_too_many_bytes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(bundles, "MAX_FILES", 3)
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as archive:
        for number in range(4):
            member(str(number))(archive)
    with pytest.raises(IntegrityError, match="lists more than 3 files"):
        unpack(tmp_path / "bundle.zip", tmp_path / "out")
    monkeypatch.setattr(bundles, "MAX_FILES", 10)
    monkeypatch.setattr(bundles, "MAX_BYTES", 3)
    with pytest.raises(IntegrityError, match="bytes that unpack to 4;"):
        unpack(tmp_path / "bundle.zip", tmp_path / "out")


def test_a_bundle_that_is_not_there_is_said(tmp_path):
    with pytest.raises(IntegrityError, match="nowhere: no such folder or file"):
        verify.command(tmp_path / "nowhere")
