# A web server for a guest of debian:12, which has Perl: perl hello.pl [PORT]
use strict;
use warnings;
use IO::Socket::INET;

my $port = $ARGV[0] // 8000;
my $server = IO::Socket::INET->new(LocalPort => $port, Listen => 16, ReuseAddr => 1)
    or die "cannot listen on port $port: $@\n";
$| = 1;
print "listening on port $port\n";
while (my $client = $server->accept) {
    my $request = <$client> // '';
    while (my $header = <$client>) { last if $header =~ /^\r?$/ }
    print {$client} "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nhello from the guest\n";
    print $request =~ s/\r?\n$/\n/r;    # nothing, if it was only a check of the port
}
