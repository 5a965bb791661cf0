"""The page that lists what is deleted or overwritten names every such call in the code, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.unit.test_house import MODULES, ROOT

PAGE = ROOT / "infra" / "SAFETY.md"
ROW = re.compile(r"^\| `(?P<module>[a-z_/0-9]+\.py)` \| (?P<calls>[^|]+) \|", re.MULTILINE)
NAMES = re.compile(
    # Files and folders.
    "rmtree|remove_folder|unlink|rmdir|removedirs|rename|renames|write_text|write_bytes|write_whole|whole_file|"
    "write_file|whole_folder|"
    "put_file|put_folder|folder_aside|remove_unfinished|write_private|truncate|chmod|chown|link|"
    "copyfile|copy2|copytree|save_file|save_pretrained|"
    # Processes.
    "kill|killpg|terminate|send_signal|"
    # Elasticsearch.
    "update_aliases|put_alias|delete_alias|put_mapping|put_settings|put_template|put_index_template|delete_template|"
    "delete_index_template|put_component_template|put_pipeline|rollover|reindex|update_by_query|delete_by_query|"
    "streaming_bulk|parallel_bulk|bulk|delete_data_stream|put_lifecycle"
)
# Of a client; functions of ours that have the same name end in these.
KAFKA = re.compile(
    "create_topics|delete_topics|delete_records|create_partitions|alter_configs|alter_group_offsets|"
    "reset_group_offsets|delete_group_offsets|delete_groups|remove_group_members|commit|create_acls|delete_acls|alter_user_scram_credentials"
)
# Names that other things have too, by the end of what they are called on.
OF = {
    "indices": frozenset({"create", "delete", "close", "clone", "split", "shrink"}),
    "shutil": frozenset({"copy", "move"}),
    "obstore": frozenset({"put", "delete", "copy", "rename"}),
}


def changes(path: Path) -> set[str]:
    """Return the calls in a module that delete or overwrite something, by name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            found |= _change(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "DELETE FROM" in node.value:
            found.add("DELETE FROM")
    return found


def _change(call: ast.Call) -> set[str]:
    owner, _, name = ast.unparse(call.func).rpartition(".")
    if name in OF.get(last := owner.rpartition(".")[2], ()):
        return {f"{last}.{name}"}
    if name == "replace":  # Of a path; that of a text takes two arguments, that of a struct or a date takes names.
        return {name} if owner == "os" or (len(call.args) == 1 and not call.keywords) else set()
    if name == "open":
        given = [*call.args, *(word.value for word in call.keywords)]
        modes = [each.value for each in given if isinstance(each, ast.Constant) and isinstance(each.value, str)]
        return {name} if any(re.fullmatch(r"[wxa]b?\+?|r\+b?", mode) for mode in modes) else set()
    return {name} if NAMES.fullmatch(name) or (owner and KAFKA.fullmatch(name)) else set()


def listed() -> dict[str, set[str]]:
    """Return the calls that the page names, by module."""
    found: dict[str, set[str]] = {}
    for row in ROW.finditer(PAGE.read_text()):
        found.setdefault(row["module"], set()).update(re.findall(r"`([^`]+)`", row["calls"]))
    return found


def test_every_call_that_deletes_or_overwrites_stands_on_the_page_with_what_it_checks() -> None:
    code = {str(path.relative_to(ROOT)): changes(path) for path in MODULES}
    page = listed()
    missing = {module: sorted(calls - page.get(module, set())) for module, calls in code.items()}
    assert {module: calls for module, calls in missing.items() if calls} == {}, "not on infra/SAFETY.md"
    stale = {module: sorted(calls - code.get(module, set())) for module, calls in page.items()}
    assert {module: calls for module, calls in stale.items() if calls} == {}, "on infra/SAFETY.md, not in the code"


def test_every_row_of_the_page_says_what_is_checked() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if ROW.match(line)]
    assert rows
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 4 and all(cells), row


def test_indexes_and_aliases_are_changed_in_one_module_alone() -> None:
    careful = {"indices.create", "indices.delete", "indices.close", "update_aliases", "put_alias", "delete_alias"}
    who = {str(path.relative_to(ROOT)) for path in MODULES if changes(path) & careful}
    assert who == {"search_env/engine/index_changes.py"}
