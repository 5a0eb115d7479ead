"""``kiv plan``: what a context takes on a machine, and how long it is predicted to take, before anything is loaded."""
