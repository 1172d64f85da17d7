"""The sentences that the voices speak, by language. All were written for this project."""

TEXTS = {
    "en": """The morning train was late again, so we walked along the river.
Could you please open the window? It is far too warm in here.
My grandmother keeps seven blue bowls on the kitchen shelf.
Yes, I think so. No, wait, perhaps not.
We were away a year ago, and nothing has changed since.
She sells sea shells, and he peels sweet green peas.
Oh! What a wonderful idea, tell me more about it.
The quick brown fox jumps over the lazy dog.
One, two, three, four, five, six, seven, eight, nine, ten.
Please leave your message after the tone, and we will call you back.
A small boat moved slowly out of the foggy harbour.
How many apples would you like to buy today?
I have never seen such a bright moon above the mountains.
Pack my box with five dozen liquor jugs.
When the sunlight strikes raindrops in the air, they act as a prism.
Nobody knew where the music came from, but everybody danced.
Put the butter, the bread and the milk on the table.
Really? You must be joking! That is impossible.
The old clock in the hall struck twelve and stopped.
Hello and welcome, my name is Robin and I will be your guide.
Few people know who owns the house at the end of the road.
Each spring the farmers plant beans, beets and peas in neat rows.
Mama made some more marmalade on Monday morning.
Go straight ahead, turn left at the church, and then ask again.
The weather tomorrow will be cloudy, with a little rain in the evening.
Why do you always whisper when you talk about money?
Bob bought a big box of purple paper balloons.
This machine learns from examples, not from rules.
Thank you very much indeed, it was a great pleasure to meet you.
The children laughed, shouted, and ran into the cold water.
An ounce of prevention is worth a pound of cure.
Sixty-six slippery snakes slid silently down the slope.
Let us begin with something simple, and see how far we get.
I owe you an answer: the answer is always more questions.
Our plane leaves at a quarter to nine from gate forty-two.
Who would have thought that a teapot could cause so much trouble?
Wait a moment. I am coming. Do not go without me!
The voice was calm, warm and clear, like a cello in an empty room.
Every picture in this book was drawn by hand.
Good night, sleep well, and see you in the morning.""",
    "de": """Guten Morgen, wie geht es Ihnen heute?
Der alte Mann ging langsam über die Brücke nach Hause.
Wir haben gestern Abend viel zu lange geredet.
Bitte öffnen Sie das Fenster, es ist sehr warm hier.
Fünf kleine Vögel sitzen auf dem Dach und singen.
Ich weiß nicht, ob er morgen kommen kann.
Ach so! Das habe ich mir schon gedacht.
Die Blumen im Garten blühen rot, gelb und blau.
Eins, zwei, drei, vier, fünf, sechs, sieben, acht.
Am Wochenende fahren wir mit dem Zug ans Meer.
Möchten Sie lieber Kaffee oder Tee trinken?
Es war einmal ein König, der hatte drei schöne Töchter.""",
    "fr": """Bonjour, je suis très heureux de vous rencontrer.
Le petit chat dort sur le vieux fauteuil rouge.
Où avez-vous trouvé cette belle photo de la mer?
Nous avons marché toute la nuit sous la pluie.
Un, deux, trois, quatre, cinq, six, sept, huit.
Il fait beau aujourd'hui, allons nous promener au parc.
Je voudrais une baguette et deux croissants, s'il vous plaît.
Ah bon? Je ne le savais pas du tout!
Les oiseaux chantent tôt le matin au printemps.
Elle a ouvert la porte, puis elle a souri.
Mon frère habite une maison bleue près du pont.
Merci beaucoup, et à bientôt j'espère.""",
    "pt": """Bom dia, hoje o mar está calmo e muito azul.
A minha avó faz o melhor pão da aldeia.
Onde fica a estação de comboios, por favor?
Um, dois, três, quatro, cinco, seis, sete, oito.
O gato preto subiu ao telhado e não quer descer.
Não me lembro do nome daquela rua comprida.
Amanhã vamos jantar com os nossos vizinhos.
Que pena! O concerto acabou mais cedo.
As crianças brincam no jardim quando faz sol.
Muito obrigado, até à próxima semana.""",
    "nl": """Goedemorgen, de koffie staat al op tafel.
Mijn fiets is gisteren in het water gevallen.
Weet u misschien waar de bakker woont?
Een, twee, drie, vier, vijf, zes, zeven, acht.
De wind waait hard over het lege strand.
Wij hebben een oud huis met groene deuren gekocht.
Nou zeg, dat had ik nooit van je gedacht!
Mijn broer speelt elke avond op de piano.
De boot vaart langzaam onder de brug door.
Tot morgen, en slaap lekker allemaal.""",
    "pl": """Dzień dobry, miło mi pana poznać.
Mój dom stoi na wzgórzu za małym lasem.
Czy możesz otworzyć okno w kuchni?
Raz, dwa, trzy, cztery, pięć, sześć, siedem, osiem.
Babcia opowiada nam bajki każdego wieczoru.
Wczoraj padał deszcz, a dzisiaj świeci słońce.
Ojej! Zupełnie o tym zapomniałem.
Zielony autobus jedzie powoli przez miasto.
Kupiłem jabłka, masło, chleb i trochę sera.
Do widzenia, spotkamy się w niedzielę.""",
    "sv": """God morgon, har du sovit gott i natt?
Vi bor i ett rött hus nära sjön.
Kan du hjälpa mig att bära bordet?
Ett, två, tre, fyra, fem, sex, sju, åtta.
Min syster målar tavlor av blommor och moln.
Tåget till norr går klockan halv nio.
Nej men, vilken rolig överraskning!
Snön föll tyst över den mörka skogen.
På lördag ska vi baka bullar tillsammans.
Tack så mycket, vi ses snart igen.""",
    "tr": """Günaydın, bugün hava çok güzel.
Küçük kardeşim bahçede top oynuyor.
Bana bir bardak su verir misiniz?
Bir, iki, üç, dört, beş, altı, yedi, sekiz.
Dedem her akşam eski şarkılar söyler.
Otobüs yine geç kaldı, biz de yürüdük.
Aman ne güzel! Bunu hiç beklemiyordum.
Mavi kapılı ev denize bakıyor.
Pazardan elma, peynir ve ekmek aldık.
Teşekkür ederim, yarın görüşürüz.""",
    "fi": """Hyvää huomenta, kahvi on jo valmista.
Pieni vene kulkee hitaasti järven yli.
Voisitko avata oven, ole hyvä?
Yksi, kaksi, kolme, neljä, viisi, kuusi, seitsemän.
Isoäiti leipoo pullaa joka lauantai.
Eilen satoi lunta, ja tänään paistaa aurinko.
Voi ei, unohdin avaimet kotiin!
Metsässä on hiljaista ja hämärää.
Ostimme leipää, maitoa ja punaisia omenoita.
Kiitos paljon ja näkemiin.""",
    "es": """Buenos días, me alegro mucho de verte otra vez.
El perro duerme debajo de la mesa de la cocina.
Mañana vamos a la playa con toda la familia.
¿Cuánto cuesta este libro de color amarillo?
Uno, dos, tres, cuatro, cinco, seis, siete, ocho.
No sé por qué la puerta está siempre abierta.
Mi abuela cuenta historias muy largas y muy bonitas.
¡Qué sorpresa! Nadie me lo había dicho.
El tren de las nueve llega hoy con mucho retraso.
Quisiera un café con leche y un vaso de agua.
Las montañas se ven azules al caer la tarde.
Gracias por todo, nos vemos muy pronto.""",
    "it": """Buongiorno a tutti e benvenuti nella nostra città.
La luna piena illumina il mare e le barche.
Vorrei un gelato al limone e una bottiglia d'acqua.
Ieri sera abbiamo mangiato una pizza molto buona.
Uno, due, tre, quattro, cinque, sei, sette, otto.
Dove hai messo le chiavi della macchina?
Mio nonno suona il violino ogni domenica mattina.
Non è vero! Io non ho mai detto questo.
I bambini giocano nel cortile fino al tramonto.
Il cielo è grigio, forse più tardi pioverà.
Che bella idea, andiamo subito a vedere.
Grazie mille e arrivederci alla prossima volta.""",
}
