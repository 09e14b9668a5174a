"""What users see of a run while it goes on. Nothing here changes what a run does.

    driver, rounds ──> Progress (progress.py): lines on the terminal
                  ├──> ChoiceHints (choice_hints.py): a search whose alpha is far off ──> a line, an event
                  ├──> KlNoise (kl_noise.py): a KL that half precision drowns ──> a line, an event
                  ├──> RoundReports (round_reports.py) ── a task on the driver's node ──> report.html
                  └──> RunLog: events.jsonl, metrics.jsonl ──> Trackers (trackers.py): TensorBoard, W&B, MLflow
                                                          └──> Prometheus (prometheus.py): a thread, Ray's metrics

A report that can't be written is an event and a line; the next round writes it anew. A round that ends while one is
being written is shown by the next.
"""
