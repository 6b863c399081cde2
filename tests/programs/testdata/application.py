# A WSGI application that knows who asks. Its credential is acquired before the workers are forked.
import base64
import multiprocessing
import os

import gssapi

service = gssapi.Name(os.environ["SERVICE"], gssapi.NameType.hostbased_service)
credential = gssapi.Credentials(name=service, usage="accept")

# A worker answers when there is a request for each of them, so that none answers two.
everybody = multiprocessing.Barrier(int(os.environ["WORKERS"]))


def application(environ, start_response):
    everybody.wait(60)
    try:
        context = gssapi.SecurityContext(creds=credential, usage="accept")
        token = context.step(base64.b64decode(environ["HTTP_AUTHORIZATION"].split()[1]))
        words = [str(context.initiator_name)]
        for b in token, context.wrap(b"hello", True).message:
            words.append(base64.b64encode(b).decode())
        words.append(str(os.getpid()))
        status = "200 OK"
    except gssapi.exceptions.GSSError as e:
        status, words = "403 Forbidden", [str(e)]
    start_response(status, [("Content-Type", "text/plain")])
    return [" ".join(words).encode()]
