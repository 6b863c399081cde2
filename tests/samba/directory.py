# What the tests have in the directory, and the keytabs of it. Samba's own modules write into the files of the domain
# controller, which may run meanwhile: samba-tool does the same, with a second for every account.
#
#   directory.py SMB.CONF populate            accounts and groups
#   directory.py SMB.CONF keytab FILE NAME    adds the keys of an account to a keytab
#   directory.py SMB.CONF password NAME NEW   changes a password
#   directory.py SMB.CONF age DAYS            sets the minimum age of passwords
#   directory.py SMB.CONF upn NAME NEW        changes the user principal name of an account
#   directory.py SMB.CONF groups NAME         prints the SIDs of an account's groups in the domain
import struct
import sys

import ldb
import samba.dckeytab  # gives Net its export_keytab
from samba.auth import system_session
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


# An account that is named otherwise than it logs in: the salt of its keys has the user principal name.
def service_account(name, upn, *spns):
    sam.newuser(name, PASSWORD)
    modify(name, userPrincipalName=upn, servicePrincipalName=list(spns), msDS_SupportedEncryptionTypes="24")
    password(name, PASSWORD)


def age(days):
    sam.set_minPwdAge(str(-int(days) * 24 * 3600 * 10**7))


def upn(name, new):
    modify(name, userPrincipalName=new)


def populate():
    sam.transaction_start()
    computer("WEB1", "HTTP/web1.ad.test", "host/web1.ad.test")
    computer("FILES", "host/files.ad.test")
    computer("WEAK", "HTTP/weak.ad.test")
    computer("OLD", "HTTP/old.ad.test", enctypes="4")
    computer("UNSET", "HTTP/unset.ad.test", enctypes="0")
    computer("ROT", "HTTP/rot.ad.test", "HTTP/www.ad.test", "host/rot.ad.test")
    computer("OFF", "HTTP/off.ad.test")
    modify("OFF$", userAccountControl=str(WORKSTATION | DISABLED))
    for service in "WEB1$", "WEAK$":
        modify(service, msDS_AllowedToDelegateTo=["cifs/files.ad.test", "host/files.ad.test"])
    modify("WEB1$", userAccountControl=str(WORKSTATION | TRUSTED_TO_AUTH_FOR_DELEGATION))
    for user in "alice", "daemon", "many", "disabled", "expired":
        sam.newuser(user, PASSWORD)
    service_account("svc-rot", "rotation@ad.test", "HTTP/svc.ad.test", "HTTP/svc", "postgres/db.ad.test")
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


# A SID as text. Samba's own ndr_unpack now and then finds more behind one.
def text(sid):
    return "S-%d-%d" % (sid[0], int.from_bytes(sid[2:8], "big")) + "".join("-%d" % n for n in struct.unpack_from("<%dI" % sid[1], sid, 8))


def groups(name):
    tokens = sam.search(base=dn(name), scope=ldb.SCOPE_BASE, attrs=["tokenGroups"])[0]["tokenGroups"]
    for sid in (text(t) for t in tokens):
        if sid.startswith(sam.get_domain_sid() + "-"):
            print(sid)


{"populate": populate, "keytab": keytab, "password": password, "age": age, "upn": upn, "groups": groups}[sys.argv[2]](*sys.argv[3:])
