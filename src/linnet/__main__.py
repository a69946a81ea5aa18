from linnet.cli.app import main

main()
