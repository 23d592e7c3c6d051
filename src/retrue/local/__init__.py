"""The whole stack on this machine, with no account: the project's own template on a local cloud.

home.py        where everything lies on this machine, and what is running
cloud.py       the local cloud as a child process
localize.py    the template, made fit for it
deploy.py      packages, the CloudFormation stack, the first dataset and encoder
bridge.py      what the local cloud lacks: metrics from log lines, and alarms that really evaluate
supervisor.py  the background process that keeps all of it running
"""
