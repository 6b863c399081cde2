# What the tests have in the directory, and the keytabs of it. Samba's own modules write into the files of the domain
# controller, which may run meanwhile: samba-tool does the same, with a second for every account.
#
#   directory.py SMB.CONF populate            accounts and groups
#   directory.py SMB.CONF keytab FILE NAME    adds the keys of an account to a keytab
#   directory.py SMB.CONF password NAME NEW   changes a password
#   directory.py SMB.CONF groups NAME         prints the SIDs of an account's groups in the domain
import sys

import ldb
import samba.dckeytab  # gives Net its export_keytab
from samba.auth import system_session
from samba.dcerpc import security
from samba.ndr import ndr_unpack
from samba.net import Net
from samba.param import LoadParm
from samba.samdb import SamDB

PASSWORD = "Passw0rd!x"
GROUPS = 300
LOCAL_GROUP = -0x80000000 | 4

WORKSTATION = 0x1000
DISABLED = 0x2
TRUSTED_TO_AUTH_FOR_DELEGATION = 0x1000000
NORMAL = 0x200

lp = LoadParm()
lp.load(sys.argv[1])
sam = SamDB(url=lp.private_path("sam.ldb"), session_info=system_session(), lp=lp)


def account(name):
    return "(sAMAccountName=%s)" % name


def dn(name):
    return sam.search(expression=account(name), attrs=[])[0].dn


def modify(name, flag=ldb.FLAG_MOD_REPLACE, **values):
    m = ldb.Message(dn(name))
    for attribute, value in values.items():
        attribute = attribute.replace("_", "-")
        m[attribute] = ldb.MessageElement(value, flag, attribute)
    sam.modify(m)


def password(name, new):
    sam.setpassword(account(name), new, force_change_at_next_login=False)


def computer(name, *spns, enctypes="24"):
    sam.newcomputer(name)
    modify(name + "$", servicePrincipalName=list(spns), msDS_SupportedEncryptionTypes=enctypes)
    password(name + "$", PASSWORD)


def populate():
    sam.transaction_start()
    computer("WEB1", "HTTP/web1.ad.test", "host/web1.ad.test")
    computer("FILES", "host/files.ad.test")
    computer("WEAK", "HTTP/weak.ad.test")
    computer("OLD", "HTTP/old.ad.test", enctypes="4")
    computer("UNSET", "HTTP/unset.ad.test", enctypes="0")
    computer("OFF", "HTTP/off.ad.test")
    modify("OFF$", userAccountControl=str(WORKSTATION | DISABLED))
    for service in "WEB1$", "WEAK$":
        modify(service, msDS_AllowedToDelegateTo=["cifs/files.ad.test", "host/files.ad.test"])
    modify("WEB1$", userAccountControl=str(WORKSTATION | TRUSTED_TO_AUTH_FOR_DELEGATION))
    for user in "alice", "daemon", "many", "disabled", "expired":
        sam.newuser(user, PASSWORD)
    modify("disabled", userAccountControl=str(NORMAL | DISABLED))
    modify("expired", accountExpires="1")
    for i in range(GROUPS):
        sam.newgroup("group-%d" % i)
        modify("group-%d" % i, flag=ldb.FLAG_MOD_ADD, member=str(dn("many")))
    sam.newgroup("local", grouptype=LOCAL_GROUP)
    modify("local", flag=ldb.FLAG_MOD_ADD, member=str(dn("group-0")))
    sam.transaction_commit()


def keytab(path, name):
    Net(None, lp).export_keytab(keytab=path, principal=name)


def groups(name):
    tokens = sam.search(base=dn(name), scope=ldb.SCOPE_BASE, attrs=["tokenGroups"])[0]["tokenGroups"]
    for sid in (str(ndr_unpack(security.dom_sid, t)) for t in tokens):
        if sid.startswith(sam.get_domain_sid() + "-"):
            print(sid)


{"populate": populate, "keytab": keytab, "password": password, "groups": groups}[sys.argv[2]](*sys.argv[3:])
