"""Jobs that workers execute for the learner, and their audit."""
