"""Grid control: environment, exact optimum, baselines and learners (docs/roadmap: not built yet)."""
