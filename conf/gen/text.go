package main

// What the page says beside the tables, in mdoc(7). Options, reasons and paths
// come from package conf.

const head = `.\" Generated from package conf; do not edit. go generate ./conf
.Dd November 28, 2026
.Dt GSSPROXYD.CONF 5
.Os
.Sh NAME
.Nm gssproxyd.conf
.Nd configuration of gssproxyd
.Sh DESCRIPTION
The configuration says which programs
.Xr gssproxyd 8
serves, which credentials it uses for each, and what each may do with them.
It has the files and the format of the C daemon gssproxy.
.Pp
The smallest configuration that lets a web server accept Kerberos with a keytab it cannot read is
.Bd -literal -offset indent
[gssproxy]

[service/http]
mechs = krb5
euid = www-data
cred_store = keytab:/etc/httpd.keytab
cred_usage = accept
.Ed
.Pp
.Dl gssproxyd check
reads the configuration as the daemon would, reports every error, and prints what the files set, or with
.Fl -all
every option that is in force and the file and line it comes from.
.Dl gssproxyd explain
says which service a given peer would match, and why not the others.
`

const files = `.Sh FILES
.Bl -tag -width Ds
.It Pa %[1]s
The main file.
It must exist.
.It Pa %[2]s/NN-NAME.conf
Drop-ins: two digits, a hyphen, at least one character,
.Ql .conf .
Other files of the directory are not read; those that seem to be meant as drop-ins are named in a warning.
They are read after the main file, in byte order of their names, and may have only the sections
.Bq gssproxy
and
.Bq service/NAME .
.El
.Pp
With
.Fl c Ar file
that is the main file, and there are no drop-ins unless
.Fl C Ar dir
says where.
With
.Fl C
alone the main file is the usual one.
.Pp
Sections are not merged between files: of two with one name, the first one counts and the other is ignored as a whole,
with a warning.
A drop-in cannot change a service of the main file.
.Pp
With
.Fl u
no file is read.
`

const syntax = `.Sh SYNTAX
.Bd -literal -offset indent
# a comment
[section]
key = value
.Ed
.Bl -bullet
.It
Files are encoded in UTF\-8.
Lines end in LF or CR LF, and none continues on the next one.
.It
A comment is a whole line that begins with
.Ql # ,
.Ql \&;
or
.Ql //
in column 0, or everything from a line that begins with
.Ql /*
to a line that ends with
.Ql */ .
There are no comments behind a value or a section, and none that are indented.
A value with a
.Ql #
at its start or behind a blank is an error, since a comment is what was meant; a
.Ql #
elsewhere is part of the value.
With
.Fl -compat
it is a warning, and all of it is the value, as for the C daemon.
.It
A section begins in column 0.
Keys may be indented.
Blanks around keys, values and names of sections do not count.
Values are taken as they are: there are no quotes, and nothing but the substitutions below is expanded.
.It
Keys and names of sections are compared without regard to case, but for
.Ql service/ .
.It
Within a file, sections of one name are one section.
Of a key that is there twice the first value counts, with a warning, unless the key may be repeated.
.It
A boolean is
.Ql yes ,
.Ql true ,
.Ql on
or
.Ql 1 ,
or
.Ql \&no ,
.Ql false ,
.Ql off
or
.Ql 0 ,
in any case.
.El
`

const substitutions = `.Sh SUBSTITUTIONS
In the values of
.Sy cred_store ,
and nowhere else, for every request:
.Bl -tag -width Ds -compact
.It Ql \&%U
the uid of the user for whom credentials are wanted, in decimal
.It Ql \&%u
the name of that user
.It Ql \&%%
a percent sign
.El
.Pp
The user is the peer, or the one whom a trusted service names.
Other letters behind a percent sign are an error.
`

const matching = `.Sh MATCHING
For every request, the first service in order for which all of this holds:
.Bl -enum
.It
.Sy allow_any_uid
is set, or
.Sy euid
is the peer's effective uid;
.It
.Sy selinux_context
is not set, or equal to the peer's;
.It
.Sy program
is not set, or equal to the path of the program the peer runs;
.It
the peer is connected to the
.Sy socket
of the service, or to the default socket if it has none.
.El
.Pp
All of it comes from the kernel, and nothing from the peer.
In a mount namespace of its own a peer's program counts if its path names the same file here, which admits services
with a private
.Pa /tmp
and keeps out containers that have a file of their own at that path.
.Pp
Two services with the same socket, program and SELinux context are an error if they have the same
.Sy euid ,
or if the first one has
.Sy allow_any_uid .
.Pp
The order is that of the main file, then of the drop-ins.
`

const refusals = `.Sh REFUSALS
If no service matches, the connection is closed without an answer.
The log and
.Dl gssproxyd explain
give the reason, by the service that came nearest:
`

const compatibility = `.Sh COMPATIBILITY
A configuration with an error does not load.
All errors are reported, each as
.Dl file:line: what is wrong; what is expected; what to do
and the exit status is 2.
On a reload the old configuration stays in force.
.Pp
The C daemon overlooks much of what is an error here: unknown keys and sections, booleans that are none, whatever
stands behind a number, comments behind values, indented comments with an equals sign, unknown mechanisms and flags, drop-ins
with errors.
With
.Fl -compat
these are warnings, and the text is read as the C daemon reads it.
.Pp
With and without
.Fl -compat ,
unlike the C daemon:
.Bl -bullet
.It
.Sy euid
goes up to 4294967294.
(uid_t)\-1 is an error.
.It
.Ql INTEGRITY
is a flag, beside
.Ql INTEGRITIY ,
and a list of flags is read to its end when it has a number in it.
.It
.Sy mechs
may be a list, as long as krb5 is all there is in it.
.It
.Ql \&%%
is a percent sign, and
.Ql \&%U
is never negative.
A name that contains a slash is not substituted.
.It
An empty path, name or principal is an error.
.It
A comment may end with
.Ql */
in column 0.
.It
UTF\-16 and UTF\-32 are not read.
.It
Whether services clash is decided with the default socket that is in force, not with the one that was compiled in.
.It
.Sy debug
and
.Sy debug_level
can raise the level of the command line and cannot lower it.
.El
`

const tail = `.Sh EXAMPLES
Keytab and credential caches of a web server:
.Bd -literal -offset indent
[service/http]
mechs = krb5
cred_store = keytab:/etc/httpd.keytab
cred_store = ccache:/var/lib/gssproxy/clients/krb5cc_%U
euid = www-data
.Ed
.Pp
Two programs that run as one user, with keytabs of their own:
.Bd -literal -offset indent
[service/imap]
mechs = krb5
cred_store = keytab:/etc/imap.keytab
euid = mail
program = /usr/libexec/imapd

[service/smtp]
mechs = krb5
cred_store = keytab:/etc/smtp.keytab
euid = mail
program = /usr/libexec/smtpd
.Ed
.Pp
Mounts of network file systems for all users; last, because it takes everybody:
.Bd -literal -offset indent
[service/network\-fs\-clients]
mechs = krb5
cred_store = keytab:/etc/krb5.keytab
cred_store = ccache:FILE:/var/lib/gssproxy/clients/krb5cc_%U
cred_store = client_keytab:/var/lib/gssproxy/clients/%U.keytab
cred_usage = initiate
allow_any_uid = yes
trusted = yes
euid = 0
.Ed
.Sh SEE ALSO
.Xr getent 1 ,
.Xr krb5.conf 5 ,
.Xr gssproxyd 8
`
