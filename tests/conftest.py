"""Shared by all tests: no network, one place for caches, the architectures of the presets at a toy size."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest


os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",  # toy models gain nothing from threads and lose to whatever else the machine does
}

import torch
from helpers import TALKS, TEXT, train_tiny, write_rows
from transformers import GPT2Config, GPT2LMHeadModel

from tokenization import build_bpe_tokenizer


signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so would our children
pytest_plugins = ["hub_server"]
# Files, tests and fixtures that `make check` leaves out: they start processes that import torch, train for more than a
# few steps, compile, export to ONNX, or open a browser. `pytest -m "not slow" --durations=30` shows what to add.
SLOW = {
    "browser",
    "talking",
    "test_auto.py",
    "test_benchmarks.py",
    "test_callbacks.py::test_a_signal_ends_training_with_a_checkpoint_to_resume_from",
    "test_callbacks.py::test_ctrl_c_is_never_lost_and_leaves_nothing_half_written",
    "test_callbacks.py::test_samples_do_not_change_the_training",
    "test_callbacks.py::test_the_checkpoint_before_it_diverged_is_kept",
    "test_card.py::test_a_card_says_what_is_true_of_the_class_the_adapter_and_the_format",
    "test_card.py::test_every_usage_block_runs_in_a_process_without_the_package",
    "test_card.py::test_the_cards_usage_block_runs_as_it_stands",
    "test_chat.py::test_ctrl_c_stops_a_reply_and_not_the_program",
    "test_checkpointing.py",
    "test_cli.py::test_a_closed_terminal_ends_training_with_a_checkpoint",
    "test_cli.py::test_a_stream_that_is_closed_or_full_is_one_line",
    "test_cli.py::test_ctrl_c_during_the_imports_is_one_line",
    "test_cli.py::test_ctrl_c_while_text_is_generated_is_one_line",
    "test_cli.py::test_every_command_knows_the_home_folder",
    "test_cli.py::test_no_garbage_is_collected_during_the_imports_and_at_exit",
    "test_cli.py::test_text_that_the_output_cannot_encode_is_escaped",
    "test_cli.py::test_the_command_dispatches",
    "test_cli.py::test_training_goes_on_without_a_reader",
    "test_commands.py",
    "test_device.py",
    "test_ecosystem.py",
    "test_engine.py",
    "test_encode.py::test_a_model_of_lines_ends_its_texts_in_generate_and_pipeline",
    "test_fuzz_config.py",
    "test_fuzz_generation.py",
    "test_fuzz_recipes.py",
    "test_generate.py::test_greedy_text_warns_of_nothing",
    "test_generate_load.py",
    "test_gguf.py::test_llama_cpp_writes_the_same_100_greedy_tokens_as_a_trained_model",
    "test_golden.py::test_a_run_that_moved_is_a_line_of_the_table_and_the_exit_code",
    "test_golden.py::test_losses_and_weights_equal_their_record",
    "test_hardware.py::test_the_environment_that_hides_bf16_is_respected",
    "test_head.py::test_a_compiled_model_takes_the_same_steps_with_the_loss_in_chunks",
    "test_hub.py::test_a_model_in_a_subfolder_loads_with_the_code_at_the_root",
    "test_hub.py::test_every_loader_gives_the_same_model_from_an_empty_cache",
    "test_hub.py::test_pushes_during_training_load_and_carry_the_card",
    "test_hub.py::test_the_models_own_push_to_hub_publishes_what_loads",
    "test_hub.py::test_without_trust_the_flag_is_named",
    "test_jobs.py::test_a_job_reads_a_text_by_its_address_and_pushes_checkpoints_and_the_model",
    "test_lora.py",
    "test_model.py::test_attention_implementations_agree",
    "test_model.py::test_compiled_attention_is_causal_without_a_mask",
    "test_model.py::test_forward_compiles_as_one_graph",
    "test_notebooks.py::test_fine_tuning_goes_from_a_base_to_a_push",
    "test_notebooks.py::test_the_tour_goes_from_text_to_a_push",
    "test_old_folders.py",
    "test_onnx.py",
    "test_package.py",
    "test_pretrained.py",
    "test_processes.py",
    "test_publish.py::test_a_native_push_needs_no_remote_code_and_gives_the_same_logits",
    "test_readme.py::test_a_block_of_the_pages_runs",
    "test_readme.py::test_a_command_for_contributors_runs",
    "test_readme.py::test_a_command_of_the_pages_runs",
    "test_readme.py::test_a_launch_of_the_pages_trains",
    "test_readme.py::test_a_recipe_of_the_pages_trains",
    "test_run_model.py",
    "test_saved_folder.py",
    "test_sources.py::test_text_needs_no_datasets_library",
    "test_space.py::test_a_static_space_holds_the_page_and_the_model",
    "test_space.py::test_the_app_of_a_space_loads_its_model_with_the_package_that_comes_with_it",
    "test_teachers.py",
    "test_tokenization.py::test_a_fresh_process_without_this_package_loads_the_same_tokenizers",
    "test_tokenizer_on_a_terminal.py",
    "test_tracing.py::test_sixty_four_readers_do_not_disturb_each_other",
    "test_train.py",
    "test_trainer.py",
    "test_tuning.py::test_a_run_that_was_stopped_ends_with_the_same_bits",
    "test_tuning.py::test_lora_that_was_chosen_is_merged_and_lora_that_was_given_is_kept",
    "test_tuning.py::test_the_bare_command_fine_tunes_every_class",
    "test_tuning.py::test_the_memory_of_a_machine_is_shared_by_its_processes",
    "test_website.py",
}


def pytest_collection_modifyitems(items):
    for item in items:
        file = item.path.name
        if SLOW & {file, f"{file}::{item.originalname}", *item.fixturenames}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def own_caches(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("GPTLITE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def own_compiled_code():
    """Every model that is compiled counts against one limit of recompilations per process."""
    yield
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.convert_frame.FRAME_COUNTER:
        torch.compiler.reset()


@pytest.fixture
def small_reserve(monkeypatch):
    """Of the minutes of a run, a part with which the numbers of steps in the tests are round."""
    for module in ("auto", "steps"):
        monkeypatch.setattr(f"modeling_gptlite.runs.{module}.RESERVE", 0.02)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "bottles.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def trained(tmp_path_factory, text_file) -> Path:
    """A folder as `scripts.train` leaves it: 20 steps of a toy model on a toy text."""
    folder = tmp_path_factory.mktemp("runs") / "bottles"
    train_tiny(text_file, folder)
    return folder


@pytest.fixture(scope="session")
def talking(tmp_path_factory, trained) -> Path:
    """The toy model, fine-tuned to answer whatever is green with "bottles!"."""
    folder = tmp_path_factory.mktemp("talking")
    rows = write_rows(folder / "conversations.jsonl", TALKS)
    train_tiny(rows, folder / "run", f"--model_name_or_path={trained}", "--max_steps=100")
    return folder / "run"


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """A folder as GPT-2's: its class, with a byte-level BPE tokenizer that has but one special token."""
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer = build_bpe_tokenizer(TEXT, vocab_size=300)
    tokenizer.pad_token, tokenizer.unk_token = None, "<|endoftext|>"
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=32, n_layer=2, n_head=2, **ends)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- Browsers ------------------------------------------------------------------------------------------------------

CHROMIUM_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("there is no Chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser):
    """Opens an address in a page of its own; in the end there must be no error and no request to another host."""
    pages = []

    def open_page(address, **context):
        page = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **context}).new_page()
        page.set_default_timeout(20_000)
        page.problems, page.requested = [], []
        page.on("pageerror", lambda error: page.problems.append(str(error)))
        page.on("console", lambda message: message.type == "error" and page.problems.append(message.text))
        page.on("request", lambda request: page.requested.append(request.url))
        pages.append((page, address))
        page.goto(address)
        return page

    yield open_page
    for page, address in pages:
        assert page.problems == []
        assert [url for url in page.requested if not url.startswith((address, "data:", "blob:"))] == []
        page.context.close()
