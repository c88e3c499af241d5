"""Grid control: an environment of storage and demand response, its exact optimum, baselines, scores and learners.

    region.py     hourly net load of a region in units of its reference peak; the synthetic one
    forecasts.py  what a controller knows ahead: persistence, day-ahead, quantiles, oracle, as [hour, horizon, feature]
    grid.py       the fleet and the convex piecewise-linear cost, every parameter with unit and source
    dataset.py      what the environment gathers from: load, observation and mask of every hour of every region
    env.py        the environment itself, vectorised; gym.py gives it gymnasium's two faces
    optimum.py    the same cost as a linear program, with the hourly values of energy
    baselines.py  nothing, rule by hour, peak shaving; mpc.py plans again every hour on any forecast
    score.py      rollouts, PoP and its gaps; kpis.py the numbers that users of a grid ask for
    jobs.py       what workers are leased in a training, and how it is done; audit.py does some of it again
    versions.py   what an algorithm is to them: pathwise.py, vtrace.py, evolve.py; ppo.py is one process
    pack.py       arrays as bytes; dataset_file.py datasets as files, link.py what learner and coordinator say to each other
    policy.py     the network that actors run, in numpy; clone.py trains it on the optimum's actions, in MLX

`docs/reference/control.md` derives the model and has the results.
"""
