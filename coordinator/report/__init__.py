"""`coordinator report`: one HTML page of what the runs left on disk. Facts are collected, charts and sections are pure, a page is written."""
