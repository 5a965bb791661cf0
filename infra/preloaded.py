"""The imports of all workers, in one place: a process that has imported this module forks workers that need no imports.

torch, transformers and the two clients cost a worker 7 to 16 seconds of processor time at each start, and so at each
restart after a kill. Nothing here opens a connection, loads a model, or looks for a GPU.
"""
# ruff: noqa: F401

from __future__ import annotations

import lightgbm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

import infra.commands.train
import infra.runs.environments
import infra.runs.sinks
import infra.runs.workers
import learner.caching
import learner.serving
import learner.workers
import search_env.waiting
import search_env.workers
