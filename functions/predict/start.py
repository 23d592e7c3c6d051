"""What the image starts: `serve` is the API over HTTP, anything else the handler that Lambda's runtime client calls.

Lambda gives the handler as the image's command, and SageMaker the word serve: one entry point has to know both.
"""

import sys

if sys.argv[1:2] == ["serve"]:
    import server

    server.main(sys.argv[2:])
else:
    from awslambdaric.__main__ import main

    main(sys.argv)
