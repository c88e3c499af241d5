"""Grid control: an environment of storage and demand response, its exact optimum, baselines, scores and learners.

    env/region.py          hourly net load of a region in units of its reference peak; a synthetic region
    env/forecasts.py       a controller's foreknowledge: persistence, day-ahead, quantiles, oracle, as [hour, horizon, feature]
    env/grid.py            the fleet and the convex piecewise-linear cost, every parameter with unit and source
    env/dataset.py         load, observation and mask of every hour of every region; dataset_file.py stores it
    env/vector.py          the environment itself, vectorised; gym.py wraps it for gymnasium
    wrappers.py, render.py scales for learners of other libraries; pictures of an episode
    folder.py              datasets of measured hours: the one module that imports `ingest`
    planning/optimum.py    the same cost as a linear program, with the hourly values of energy
    planning/baselines.py  idle, rule by hour, peak shaving; mpc.py replans every hour on any forecast or on paths
    planning/two_stage.py  plans on paths of the load for all episodes at once, by an interior-point method
    evaluation/score.py    rollouts, the share of the perfect-foresight saving and its gaps; kpis.py other indicators
    policy.py              the network that actors run, in numpy
    algorithms/base.py     policy versions and the Algorithm interface of pathwise.py, vtrace.py and evolution.py;
                           clone.py trains a first policy on the optimum's actions, in MLX
    distributed/jobs.py    the jobs that workers run in a training; runner.py runs them, audit.py runs some of them again,
                           protocol.py has the messages between learner and coordinator
    arrays.py              named arrays in safetensors files

`docs/reference/control.md` derives the model and has the results.
"""
