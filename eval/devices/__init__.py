"""One way to reach a machine a file.

A device file has:

- `why_unusable()`: the reason why it cannot be reached, or None.
- `open_session(runtime, folder, artefact, threads)`: a session whose artefact lives in a process there; a crash or a
  hang raises `eval.worker.WorkerError`.
  `--base-python` needs `python` besides, another environment's, which only this machine has.
- `run_worker(job, timeout_s)`: runs `eval.worker` there in a fresh process with a JSON job, gives its JSON result; a
  crash, a hang or unreadable output raises `eval.worker.WorkerError` with what happened.
"""
