"""What ``genosparse benchmark`` measures: suites, the rivals they run, timers, tables, and a roofline to hold them to.

A suite (``suites``) is a list of units of work. Each gives rows of results as JSON knows them, which ``results`` keeps
between starts and ``tables`` prints. Attention is measured in ``attention`` beside ``rivals``, compiled kernels are
listed in ``kernels``, and ``tuning`` chooses their tiles on the GPU at hand.
"""
