package fuse

// What the files help say. Examples are a shell's; fs is the directory of the mount.

const howTo = `
Ask in one of two ways, with JSON in and out; tokens, messages and channel bindings are in base64.

  exec 3<>transact; echo "$question" >&3; read -r answer <&3

or step by step, each of which may be another process of the same session:

  mine=$(mktemp -d execution/XXXXXX) && echo "$question" >$mine/inputs && echo execute >$mine/control
  cat $mine/outputs; rmdir $mine

What is refused fails when it is written: transact then answers with reason, text and hint, and an execution has the
same in its file error. ../../status says what you may do, and why not the rest. What is in an execution goes with it, by
rmdir.
`

const helpInit = `init: begin a context with a service, or go on with one.

  {"target":"HTTP@www.example.com"}

The answer has token, which is for the service. With "established":false the service has a token too: write it to the
same file or execution, {"token":"..."}. With "established":true there is context, the id to use with wrap and others.

Fields: target, target_type (hostbased or principal), mech (krb5 or spnego), flags (a list of deleg, mutual, replay,
sequence, conf, integ, dce-style, identify, deleg-policy; mutual, replay, sequence, conf and integ if absent), lifetime
(seconds), bindings, as (the id of a context whose initiator has delegated a credential), impersonate (a user).
` + howTo

const helpAccept = `accept: take what an initiator has sent.

  {"token":"..."}

The answer has token, if there is one for the initiator. With "established":true it has context, the id to use with wrap
and others, initiator, and user, who that is on this host. Else write what the initiator sends next, {"token":"..."}.

Fields: token, bindings, delegate (true: take the credential that the initiator delegates).
` + howTo

const helpWrap = `wrap: protect a message for the peer of a context of yours.

  {"context":"ID","message":"aGVsbG8="}

The answer has token. Fields: context, message, public (true: protect, and do not encrypt).
` + howTo

const helpUnwrap = `unwrap: open what the peer of a context of yours has wrapped.

  {"context":"ID","token":"..."}

The answer has message, and encrypted, whether it was.
` + howTo

const helpGetMIC = `getmic: make an integrity code of a message, for the peer of a context of yours.

  {"context":"ID","message":"aGVsbG8="}

The answer has token.
` + howTo

const helpVerifyMIC = `verifymic: check the integrity code that the peer of a context of yours has made of a message.

  {"context":"ID","message":"aGVsbG8=","token":"..."}

The answer is {"verified":true}, or it is refused.
` + howTo

const helpNames = `names: write a name as Kerberos does, and say which user of this host it is.

  {"name":"alice@EXAMPLE.COM"}

The answer has name, and user, if there is one. Fields: name, type (hostbased or principal).
` + howTo
