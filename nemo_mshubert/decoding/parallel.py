# Copyright (c) 2026, The nemo_mshubert authors.
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""Lexicon beam search on all cores: each worker process loads LM and lexicon once, and then decodes utterances.

The binary LM is memory-mapped, so the processes share one copy of it. Processes are spawned, not forked, because
forking a process with CUDA or threads is unsafe. Therefore a script that decodes in parallel needs the usual
``if __name__ == "__main__":``.
"""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from nemo_mshubert.decoding.config import LexiconBeamConfig
from nemo_mshubert.decoding.lexicon_beam import LexiconBeamSearchDecoder, LexiconHypothesis
from nemo_mshubert.decoding.log_probs import checked_log_probs

_worker_decoder: Optional[LexiconBeamSearchDecoder] = None  # one in each worker process

Task = Tuple[np.ndarray, str, LexiconBeamConfig]
LOOK_SECONDS = 0.2  # between two checks for a result


def _start_worker(decoder: LexiconBeamSearchDecoder) -> None:
    global _worker_decoder
    _worker_decoder = decoder
    # Ctrl-C reaches every process of the terminal, and the pool may wait forever for a worker that it killed.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker if its parent is killed: otherwise it would wait for tasks forever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _interrupt_once(*_) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second one during the exit would leave the workers behind
    raise KeyboardInterrupt


@contextmanager
def _on_ctrl_c(handler):
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets Ctrl-C
        yield
        return
    previous = signal.signal(signal.SIGINT, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _decode_in_worker(task: Task) -> LexiconHypothesis:
    return _decode_task(_worker_decoder, task)


def _decode_task(decoder: LexiconBeamSearchDecoder, task: Task) -> LexiconHypothesis:
    log_probs_TV, utterance, config = task
    return decoder.with_config(config).decode(log_probs_TV, utterance)


def results_of(futures: Sequence[Future]) -> Iterator[LexiconHypothesis]:
    """Results in order. The main thread waits in many short steps, because a rank whose main thread uses no processor
    time at all is taken to hang (`parallel.launched`)."""
    for future in futures:
        while not future.done():
            wait([future], timeout=LOOK_SECONDS)
        yield future.result()


class ParallelDecoder:
    """`LexiconBeamSearchDecoder` in several processes, to be used in a ``with`` block.

    Args:
        decoder: the decoder that each process rebuilds. Since it exists, LM and lexicon are known to be valid.
        workers: number of processes; with 1, this process decodes.
    """

    def __init__(self, decoder: LexiconBeamSearchDecoder, workers: int):
        self.decoder = decoder
        self.labels = decoder.labels
        self.frame_seconds = decoder.frame_seconds
        self._workers = workers
        self._pool = None

    def decode_all(
        self,
        utterances: Iterable[Tuple[str, Any]],
        config: Optional[LexiconBeamConfig] = None,
        progress: Optional[str] = None,
    ) -> List[LexiconHypothesis]:
        """Decode ``(utterance id, log_probs_TV)`` pairs with the decoder's ``decode``; results are in the same order.

        Args:
            config: other weights and beams for this call.
            progress: text before a progress bar; without it there is no bar.

        Raises:
            ValueError: NaN or wrong shape; names the utterance.
            RuntimeError: a process was killed from outside.
        """
        config = config or self.decoder.config
        tasks = [
            (checked_log_probs(log_probs_TV, len(self.labels), utterance), utterance, config)
            for utterance, log_probs_TV in utterances
        ]
        try:
            if self._pool is None:
                results = (_decode_task(self.decoder, task) for task in tasks)
            else:
                with _on_ctrl_c(signal.SIG_IGN):  # workers start here and inherit it until `_start_worker`
                    results = results_of([self._pool.submit(_decode_in_worker, task) for task in tasks])
            return list(tqdm(results, total=len(tasks), desc=progress, unit="utt", disable=progress is None))
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A process of the beam search was ended from outside, as by the system where memory is short. Run the "
                "command again, with fewer --workers if that was it: each holds the lexicon."
            ) from error

    def __enter__(self) -> "ParallelDecoder":
        if self._workers > 1:
            spawn = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._workers, spawn, initializer=_start_worker, initargs=(self.decoder,))
        self._ctrl_c = _on_ctrl_c(_interrupt_once)
        self._ctrl_c.__enter__()
        return self

    def __exit__(self, *_) -> None:
        if self._pool is not None:
            with _on_ctrl_c(signal.SIG_IGN):
                self._pool.shutdown(cancel_futures=True)
        self._ctrl_c.__exit__(None, None, None)
